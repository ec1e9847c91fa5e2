//! Programs of answers: what is found in an answer, and what a hostile program can't do. Each program runs as `weft eval
//! --run-code` runs it; without Python the tests fail, as the option does.

mod scratch;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use weft::eval::Task;
use weft::eval::any_task::AnyTask;
use weft::eval::code::{Program, extracted, program};
use weft::eval::sandbox::{Limits, Outcome, Sandbox};

/// The sandbox of `weft eval`, with time for a busy machine.
static SANDBOX: LazyLock<Sandbox> = LazyLock::new(|| Sandbox::open(None, SANDBOX_LIMITS).expect("there is Python"));
const SANDBOX_LIMITS: Limits = Limits { seconds: 60, memory_bytes: 2 << 30, file_bytes: 16 << 20, processes: 64 };
/// The sandbox for programs that never end.
static SHORT: LazyLock<Sandbox> = LazyLock::new(|| {
    let limits = Limits { seconds: 3, ..Limits::default() };
    Sandbox::open(None, limits).expect("there is Python")
});

fn run(solution: &str, tests: &str) -> Outcome {
    SANDBOX.run(&Program { solution: solution.to_owned(), tests: tests.to_owned() })
}

fn failed_in(sandbox: &Sandbox, solution: &str) -> String {
    match sandbox.run(&Program { solution: solution.to_owned(), tests: "assert answer() == 42".to_owned() }) {
        Outcome::Failed(reason) => reason,
        Outcome::Passed => panic!("it passed: {solution}"),
    }
}

fn failed(solution: &str) -> String {
    failed_in(&SANDBOX, solution)
}

const ENDED: &str = "the program ended before its tests had passed";

#[test]
fn a_program_passes_its_tests_or_says_which_error_stopped_it() {
    assert_eq!(run("def answer():\n    return 6 * 7\n", "assert answer() == 42\nassert answer() > 0"), Outcome::Passed);
    assert_eq!(failed("def answer():\n    return 6 * 8\n"), "AssertionError");
    assert_eq!(failed("answer = 1"), "TypeError: 'int' object is not callable");
    assert!(failed("def answer(:").starts_with("SyntaxError: "));
    assert_eq!(failed("raise ValueError('no')"), "ValueError: no");
    assert_eq!(
        failed("import weft_has_no_such_module"),
        "ModuleNotFoundError: No module named 'weft_has_no_such_module'"
    );
    // What stands below `if __name__` is for a script.
    assert_eq!(
        run("def answer():\n    return 42\nif __name__ == '__main__':\n    exit()", "assert answer() == 42"),
        Outcome::Passed
    );
    // Many at a time come back in order.
    let programs: Vec<Program> =
        (0..12).map(|i| Program { solution: format!("x = {i}"), tests: "assert x % 3 == 0".to_owned() }).collect();
    let passed: Vec<bool> = SANDBOX.run_all(&programs).iter().map(|o| *o == Outcome::Passed).collect();
    assert_eq!(passed, (0..12).map(|i| i % 3 == 0).collect::<Vec<_>>());
}

#[test]
fn a_program_that_ends_early_does_not_pass() {
    for early in [
        "import sys\nsys.exit(0)",
        "exit()",
        "quit(0)",
        "import os\nos._exit(0)",
        "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\nos._exit(0)",
        "import os\nos.execv('/bin/true', ['true'])",
        "raise SystemExit",
        "import ctypes\nctypes.string_at(0)",
        "import __main__\n__main__.answer('passed')",
        "import os\nfor d in range(3, 64):\n    try: os.write(d, b'{\"outcome\": \"passed\"}\\n')\n    except OSError: pass\nos._exit(0)",
        "print('{\"token\": \"0\", \"outcome\": \"passed\"}', flush=True)\nimport os\nos._exit(0)",
    ] {
        let reason = failed(early);
        assert!(!reason.is_empty() && !reason.starts_with("timed out"), "{early}: {reason}");
    }
    assert_eq!(failed("import sys\nsys.exit(0)"), ENDED);
    assert_eq!(failed("import os\nos._exit(0)"), ENDED);
}

#[test]
fn a_program_that_takes_too_much_is_stopped() {
    let started = Instant::now();
    assert_eq!(failed_in(&SHORT, "while True: pass"), "timed out after 3 s");
    assert_eq!(failed_in(&SHORT, "import time\ntime.sleep(3600)"), "timed out after 3 s");
    assert_eq!(failed_in(&SHORT, "while True: print('x' * 10000)"), "timed out after 3 s");
    assert!(started.elapsed() < Duration::from_secs(30));
    assert!(failed("x = b'x' * (10 << 30)").starts_with("MemoryError"));
    assert!(
        failed("with open('big', 'wb') as f:\n    for _ in range(64): f.write(b'x' * (1 << 20))")
            .contains("File too large")
    );
    // Each process and each file is within its own limit.
    let sandbox = |memory_bytes, file_bytes| {
        Sandbox::open(None, Limits { memory_bytes, file_bytes, ..SANDBOX_LIMITS }).expect("there is Python")
    };
    let small = sandbox(256 << 20, 1 << 20);
    let sleep = "\nimport time\ntime.sleep(3600)";
    if cfg!(target_os = "linux") {
        let many =
            "import os\nfor _ in range(5):\n    if os.fork() == 0:\n        x = b'x' * (150 << 20)\n        break";
        assert_eq!(failed_in(&small, &format!("{many}{sleep}")), "its processes took more than 512 MiB of memory");
    }
    let files = "for i in range(40): open(str(i), 'wb').write(b'x' * (1 << 20))";
    assert_eq!(failed_in(&small, &format!("{files}{sleep}")), "it wrote more than 16 MiB");
    let empty = "for i in range(11000): open(str(i), 'w').close()";
    assert_eq!(failed_in(&small, &format!("{empty}{sleep}")), "it made more than 10000 files");
    let deep = "import os\nwhile True:\n    os.mkdir('d')\n    os.chdir('d')";
    assert_eq!(failed(deep), "it nested folders too deeply");
    let reason = failed(
        "import os\nown = os.getcwd()\nfor _ in range(900):\n    os.mkdir('d')\n    os.chdir('d')\nos.chmod(own, 0)\nraise ValueError(own)",
    );
    let own = reason.strip_prefix("ValueError: ").expect("its folder");
    assert!(!Path::new(own).exists(), "{own} is left");
    assert_eq!(failed("input()"), "EOFError: EOF when reading a line");
    assert_eq!(failed("import sys\nassert sys.stdin.read() == ''\nraise ValueError('empty')"), "ValueError: empty");
    assert!(failed("def f(n): return f(n + 1)\nf(0)").starts_with("RecursionError"));
}

/// The number of processes on the machine that run the guard.
fn children() -> usize {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let is_guard = |path: &Path| {
        let command = fs::read(path.join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&command).contains("weft-marker-of-a-bomb")
    };
    entries.filter(|entry| is_guard(&entry.path())).count()
}

#[test]
fn a_fork_bomb_ends_and_leaves_nothing_behind() {
    if !cfg!(target_os = "linux") {
        return;
    }
    // Each process sleeps beyond the limit under a name of its own, in a session of its own where it can.
    let bomb = "import os, subprocess, sys\nmade = 0\nfor _ in range(400):\n    try:\n        subprocess.Popen([sys.executable, '-c', \
                'import time; time.sleep(60)', 'weft-marker-of-a-bomb'], start_new_session=True)\n        made += 1\n    \
                except OSError: break\nraise ValueError(str(made))";
    let reason = failed(bomb);
    let made = reason.strip_prefix("ValueError: ").and_then(|made| made.parse::<usize>().ok());
    if !SANDBOX.lacking().iter().any(|lacks| lacks.contains("number of processes")) {
        assert!(made.is_some_and(|made| made < 128) || reason.starts_with("timed out"), "{reason}");
    }
    if !SANDBOX.lacking().iter().any(|lacks| lacks.contains("survive")) {
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(children(), 0, "processes of the bomb are left");
    }
    let reason = failed_in(&SHORT, "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass");
    assert!(reason == "timed out after 3 s" || reason == ENDED, "{reason}");
}

#[test]
fn a_program_has_neither_network_nor_other_files_nor_variables() {
    let lacks = |what: &str| SANDBOX.lacking().iter().any(|lacks| lacks.contains(what));
    if !lacks("network") {
        let connect = "import socket\nlistener = socket.socket()\nsocket.create_connection(('192.0.2.1', 80), 2)";
        let reason = failed(connect);
        assert!(reason.starts_with("OSError") || reason.starts_with("PermissionError"), "{reason}");
    }
    if !lacks("write wherever") {
        let folder = scratch::folder("untouched");
        fs::write(folder.join("kept"), "kept").expect("the file is written");
        let of = |code: &str| failed(&code.replace("FOLDER", &folder.display().to_string()));
        assert!(of("open('FOLDER/new', 'w')").starts_with("PermissionError"));
        assert!(of("import os\nos.remove('FOLDER/kept')").starts_with("PermissionError"));
        assert!(of("import shutil\nshutil.rmtree('FOLDER')").starts_with("PermissionError"));
        assert_eq!(scratch::names(&folder), ["kept"]);
    }
    let own = "import os\nassert os.listdir('.') == []\nopen('own', 'w').write('x')\ndef answer(): return 42 if os.listdir('.') == ['own'] else 0";
    assert_eq!(run(own, "assert answer() == 42"), Outcome::Passed);
    assert_eq!(
        run("import os\ndef answer(): return 42 if 'CARGO' not in os.environ else 0", "assert answer() == 42"),
        Outcome::Passed
    );
}

#[test]
fn code_is_found_in_an_answer() {
    let fenced = "Here it is:\n```python\ndef f(x):\n    return x\n```\nand a test:\n```\nprint(f(1))\n```";
    assert_eq!(extracted(fenced, "f"), "def f(x):\n    return x");
    let second = "```\nprint(1)\n```\n```py\ndef f(x):\n    return x\n```";
    assert_eq!(extracted(second, "f"), "def f(x):\n    return x");
    assert_eq!(extracted(second, ""), "print(1)");
    assert_eq!(
        extracted("```python\ndef f():\n    return 1", "f"),
        "def f():\n    return 1",
        "a block that is never closed"
    );
    assert_eq!(extracted("    return x\n", "f"), "    return x");
    assert_eq!(extracted("Here:\n```\ndef f(x):\n    return x", "f"), "def f(x):\n    return x");
    assert_eq!(extracted("Here:\n```\nprint(1)", ""), "print(1)");
    assert_eq!(extracted("return x\n```\nrest", "f"), "return x", "a fence that was opened in the prompt");
    let truth =
        json!({ "prompt": "def f(x):\n    \"\"\"Twice.\"\"\"\n", "entry_point": "f", "tests": "assert f(2) == 4" });
    let passes = |answer: &str| {
        let Program { solution, tests } = program(answer, &truth);
        run(&solution, &tests) == Outcome::Passed
    };
    for right in [
        "```python\ndef f(x):\n    return 2 * x\n```",
        "    return 2 * x",
        "return 2 * x",
        "y = x\n    return y + x",
        "for _ in range(1):\n    y = x\nreturn 2 * y",
        "f = lambda x: 2 * x",
        "```\ndef f(x):\n  return 2 * x\n```",
    ] {
        assert!(passes(right), "{right}");
    }
    for wrong in ["", "I don't know.", "```python\ndef g(x):\n    return 2 * x\n```", "    return x"] {
        assert!(!passes(wrong), "{wrong}");
    }
}

/// Rows of ours in the hub's form.
const HUMANEVAL: &str = r#"{"task_id": "Weft/0", "prompt": "def doubled(x):\n    \"\"\"Twice x.\n    >>> doubled(2)\n    4\n    \"\"\"\n", "entry_point": "doubled", "canonical_solution": "    return 2 * x\n", "test": "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(0) == 0\n"}"#;
const MBPP: &str = r#"{"task_id": 1, "text": "Write a function to count the vowels of a text.", "code": "def vowels(text):\n    return sum(c in 'aeiou' for c in text)", "test_list": ["assert vowels('abcde') == 2", "assert vowels('') == 0"], "test_setup_code": "", "challenge_test_list": []}"#;

#[test]
fn the_rows_own_solutions_pass() {
    for (task, row, key) in [(Task::Humaneval, HUMANEVAL, "canonical_solution"), (Task::Mbpp, MBPP, "code")] {
        let row: Value = serde_json::from_str(row).expect("JSON");
        let problem = AnyTask::from(task).problem(row.as_object().expect("a row")).expect("a problem");
        let Program { solution, tests } = program(row[key].as_str().expect("code"), &problem.ground_truth);
        assert_eq!(run(&solution, &tests), Outcome::Passed, "{}", task.name());
        let Program { solution, tests } = program("    return None", &problem.ground_truth);
        assert_ne!(run(&solution, &tests), Outcome::Passed, "{}", task.name());
    }
}

#[test]
fn the_command_runs_code_only_where_it_is_told_to() {
    let folder = scratch::folder("command");
    fs::write(folder.join("rows.jsonl"), HUMANEVAL).expect("the rows are written");
    let eval = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
        command.current_dir(&folder).args([
            "eval",
            "--model",
            "tiny-base",
            "--task",
            "humaneval",
            "--data",
            "rows.jsonl",
        ]);
        command.args(["--gen-length", "32", "--diffusion-steps", "2", "--out", "out.json"]).args(more);
        command.output().expect("weft starts")
    };
    let refused = eval(&[]);
    let text = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(2), "{text}");
    let reason = "error: the answers to humaneval are programs, and scoring them runs what the model wrote on this machine; add --run-code";
    assert!(text.starts_with(reason) && text.lines().count() == 1, "{text}");
    assert!(!folder.join("out.json").exists());
    let output = eval(&["--run-code", "--code-seconds", "5"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        text.starts_with("humaneval on 1 problem: pass@1 0.0 % +- 0.0 (0 of 1), 95 % interval 0.0 to 79.3\n"),
        "{text}"
    );
    let saved: Value =
        serde_json::from_str(&fs::read_to_string(folder.join("out.json")).expect("saved")).expect("JSON");
    assert!(saved["generations"][0]["outcome"].is_string());
    // Scored again without running anything, and with it.
    let score = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
        let output =
            command.current_dir(&folder).args(["score", "--task", "humaneval", "out.json"]).args(more).output();
        String::from_utf8(output.expect("weft starts").stdout).expect("UTF-8")
    };
    assert_eq!(score(&[]), "humaneval on 1 generation: pass@1 0.0 % +- 0.0 (0 of 1), 95 % interval 0.0 to 79.3\n");
    assert_eq!(score(&["--run-code"]), score(&[]));
}
