//! Other programs' names for options and commands, and what to write in Weft instead. `hints` reads these tables; the names of
//! settings are in `settings::other_names`.

/// Other programs' options, each with Weft's option for it, which is suggested if the command has that option.
pub(super) const OPTIONS: &[(&str, &str)] = &[
    ("-m", "--model"),
    ("--ckpt", "--model"),
    ("--ckpt-path", "--model"),
    ("--checkpoint", "--model"),
    ("--base-model", "--model"),
    ("--model-path", "--model"),
    ("--model-name-or-path", "--model"),
    ("--pretrained", "--model"),
    ("--lora-modules", "--adapter"),
    ("--max-model-len", "--max-length"),
    ("--max-num-seqs", "--batch-size"),
    ("-p", "--prompt"),
    ("--query", "--prompt"),
    ("--question", "--prompt"),
    ("--input", "--prompt"),
    ("--instruction", "--prompt"),
    ("-f", "--data"),
    ("--file", "--data"),
    ("--prompt-file", "--data"),
    ("--prompts", "--data"),
    ("--input-file", "--data"),
    ("--dataset", "--data"),
    ("-n", "--gen-length"),
    ("-l", "--gen-length"),
    ("--length", "--gen-length"),
    ("--system-prompt", "--system"),
    ("--lora", "--adapter"),
    ("--lora-path", "--adapter"),
    ("--adapters", "--adapter"),
    ("--peft", "--adapter"),
    ("--stream", "--trace"),
    ("--visualize", "--trace"),
    ("-o", "--out"),
    ("--output", "--out"),
    ("--output-path", "--out"),
    ("--output-file", "--out"),
    ("--save-path", "--out"),
    ("--torch-dtype", "--precision"),
    ("-d", "--device"),
    ("--gpu", "--device"),
    ("--cuda", "--device"),
    ("-t", "--threads"),
    ("-j", "--threads"),
    ("--num-threads", "--threads"),
    ("--workers", "--threads"),
    ("--silent", "--quiet"),
    ("--disable-tqdm", "--quiet"),
    ("--num-examples", "--limit"),
    ("--num-samples", "--limit"),
    ("--mc-num", "--mc-samples"),
    ("--allow-code-execution", "--run-code"),
    ("--confirm-run-unsafe-code", "--run-code"),
    ("--resume-from-checkpoint", "--resume"),
    ("--continue", "--resume"),
];

/// Other programs' options, and a sentence that says what to do.
pub(super) const SENTENCES: &[(&str, &str)] = &[
    ("--skip-special-tokens", "special tokens are printed only with --keep-special-tokens"),
    (
        "--dry-run",
        "weft plan RECIPE predicts memory and time, and weft data RECIPE shows the rows, before anything runs",
    ),
    ("--cpu", "write --device cpu"),
    ("--gpus", "--device cuda computes on one GPU; docs/cuda.md has the launch on several"),
    ("--num-gpus", "--device cuda computes on one GPU; docs/cuda.md has the launch on several"),
    ("--verbose", "everything is printed unless --quiet is given"),
    ("-v", "everything is printed unless --quiet is given; -V prints the version"),
    ("--do-sample", "--temperature above 0 samples"),
    ("--greedy", "answers are greedy unless --temperature is above 0"),
    ("--force", "no run overwrites another; choose a new train.output or remove the folder"),
    ("--overwrite", "no run overwrites another; choose a new train.output or remove the folder"),
    ("--export", "weft merge writes adapter and base as one checkpoint"),
];

/// Options of other commands, and other programs' names for them: what to write instead if the command has that option, and
/// the setting if it is given by `--set`.
pub(super) const ELSEWHERE: [(&str, &str, Option<&str>); 13] = [
    ("-n", "--examples", None),
    ("--limit", "--examples", None),
    ("--num-examples", "--examples", None),
    ("--num-samples", "--examples", None),
    ("--limit", "--set", Some("eval.limit")),
    ("--task", "--set", Some("eval.task")),
    ("--model", "--set", Some("model.path")),
    ("-m", "--set", Some("model.path")),
    ("--adapter", "--set", Some("model.adapter")),
    ("--data", "--set", Some("data.train")),
    ("--input", "--set", Some("data.train")),
    ("--out", "--set", Some("train.output")),
    ("-o", "--set", Some("train.output")),
];

/// Other programs' options for the batch size, which commands without a recipe choose by themselves.
pub(super) const BATCHES: [&str; 4] = ["--batch-size", "--eval-batch-size", "--per-device-eval-batch-size", "-b"];
pub(super) const BATCHED: &str =
    "leave it out: batches are formed by the tokens of their rows, and no result depends on them";
pub(super) const NO_RECIPE: &str = "it takes no recipe, but options (--help lists them); a recipe's eval.task scores its held-out rows \
                         in weft train";
pub(super) const AS_JSON: &str = "--data FILE --out FILE writes answers as JSONL";

/// Other programs' options for a recipe, whose path is a positional argument in Weft.
pub(super) const RECIPES: [&str; 5] = ["--config", "-c", "--config-file", "--recipe", "--yaml"];

/// Other programs' names for commands.
pub(super) const COMMANDS: &[(&str, &str)] = &[
    ("finetune", "train"),
    ("fine-tune", "train"),
    ("sft", "train"),
    ("lora", "train"),
    ("fit", "train"),
    ("tune", "train"),
    ("run", "train"),
    ("chat", "generate"),
    ("infer", "generate"),
    ("inference", "generate"),
    ("predict", "generate"),
    ("sample", "generate"),
    ("ask", "generate"),
    ("server", "serve"),
    ("api", "serve"),
    ("webui", "serve"),
    ("playground", "serve"),
    ("evaluate", "eval"),
    ("test", "eval"),
    ("lm-eval", "eval"),
    ("perplexity", "likelihood"),
    ("export", "merge"),
    ("fuse", "merge"),
    ("merge-lora", "merge"),
    ("preview", "data"),
    ("preprocess", "data"),
    ("tokenize", "data"),
    ("init", "recipe"),
    ("config", "recipe"),
    ("estimate", "plan"),
    ("dry-run", "plan"),
    ("benchmark", "bench"),
];

/// Other programs' commands that are none of Weft's, and a sentence that says what to do.
pub(super) const NO_COMMANDS: &[(&str, &str)] = &[
    ("version", "weft --version prints it"),
    ("help-me", HELPS),
    ("usage", HELPS),
    ("man", HELPS),
    ("commands", HELPS),
    ("list", MODELS),
    ("ls", MODELS),
    ("models", MODELS),
    ("ps", MODELS),
    ("pull", MODELS),
    ("download", MODELS),
    ("settings", KEYS),
    ("keys", KEYS),
    ("options", KEYS),
    ("resume", "weft train RECIPE --resume continues a run"),
    ("continue", "weft train RECIPE --resume continues a run"),
    ("sweep", "a loop over --set trains one run for each value, and weft compare compares them (docs/curves.md)"),
    ("validate", CHECKS),
    ("check", CHECKS),
    ("lint", CHECKS),
    ("quantize", "--quantize nf4 (or model.quantize in a recipe) quantizes the base as it is read"),
    ("info", "weft plan RECIPE describes a recipe's base, and docs/models.md the checkpoints that load"),
    ("report", REPORTS),
    ("plot", REPORTS),
    ("runs", REPORTS),
    ("push", UPLOADED),
    ("upload", UPLOADED),
    ("login", "files of the hub are fetched with the token in HF_TOKEN (docs/hub.md)"),
];

const HELPS: &str = "weft --help lists the commands, and weft COMMAND --help the options of one";
const MODELS: &str =
    "a model is a folder or an id of the hub (--model ORG/NAME), which the command that needs it downloads";
const KEYS: &str = "weft recipe prints every key of a recipe, and weft COMMAND --help the options of a command";
const CHECKS: &str =
    "weft plan RECIPE checks a recipe and predicts what its run takes, and weft data RECIPE shows its rows";
const REPORTS: &str = "weft train writes report.html into the run's folder, and weft compare RUN... compares runs";
const UPLOADED: &str = "docs/hub.md has the line that uploads a run's folder";
