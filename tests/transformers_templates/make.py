"""Writes what transformers renders into the files beside this one.

Each NAME.toml holds one template, whose feature it names, and several inputs. This script renders every input by
transformers and writes the result behind it: `expected`, the text; `refused`, the message of `raise_exception`; or
`fails`, another error, whose words are Python's own. `tests/templates.rs` renders the same inputs by Weft, and needs
neither Python nor this script. A new file needs `feature`, `template` and `[[cases]]` with `input`.

    pip install transformers==4.57.1 jinja2==3.1.6
    python tests/transformers_templates/make.py          # writes the files
    python tests/transformers_templates/make.py --check  # exits with 1 where a file would change
"""

import datetime
import json
import pathlib
import sys
import tomllib

import jinja2
import transformers
from transformers.utils import chat_template_utils

FOLDER = pathlib.Path(__file__).parent


class FixedClock(datetime.datetime):
    """`datetime.now()` at the second that an input names, in UTC."""

    seconds = 0

    @classmethod
    def now(cls, tz=None):
        return datetime.datetime.fromtimestamp(cls.seconds, datetime.timezone.utc).replace(tzinfo=None)


def render(template, text):
    """What transformers makes of an input: a key of the case, and its value."""
    given = json.loads(text)
    FixedClock.seconds = given.pop("now", 0)
    try:
        rendered, _ = chat_template_utils.render_jinja_template(
            conversations=[given.pop("messages")], chat_template=template, **given
        )
        return "expected", rendered[0]
    except jinja2.exceptions.TemplateRuntimeError as error:
        return "fails", f"{type(error).__name__}: {error}"
    except jinja2.exceptions.TemplateError as error:
        kind = "refused" if type(error) is jinja2.exceptions.TemplateError else "fails"
        return kind, str(error) if kind == "refused" else f"{type(error).__name__}: {error}"
    except Exception as error:  # whatever Python raises, Weft has to refuse too
        return "fails", f"{type(error).__name__}: {error}"


def quoted(text):
    """A basic string of TOML."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def literal(text):
    """A string of TOML that shows a text as it is, where TOML can."""
    is_plain = "'''" not in text and all(c in "\n\t" or ord(c) >= 32 and c != "\x7f" for c in text)
    return f"'''\n{text}'''" if is_plain else quoted(text)


def main():
    chat_template_utils.datetime = FixedClock
    changed = False
    for path in sorted(FOLDER.glob("*.toml")):
        old = path.read_text(encoding="utf-8")
        read = tomllib.loads(old)
        lines = [
            f"# Rendered by transformers {transformers.__version__} and jinja2 {jinja2.__version__}; see make.py.",
            f"feature = {quoted(read['feature'])}",
            f"template = {literal(read['template'])}",
        ]
        for case in read["cases"]:
            kind, value = render(read["template"], case["input"])
            lines += ["", "[[cases]]", f"input = {literal(case['input'])}", f"{kind} = {quoted(value)}"]
        new = "\n".join(lines) + "\n"
        changed |= new != old
        if new != old and "--check" not in sys.argv:
            path.write_text(new, encoding="utf-8")
    sys.exit(1 if changed and "--check" in sys.argv else 0)


if __name__ == "__main__":
    main()
