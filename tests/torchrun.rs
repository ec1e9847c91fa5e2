//! What torchrun's variables may say, without a GPU: processes that would each do the same are refused.

use std::process::Command;

/// The sentence that `weft` ends with where a launcher set these variables.
fn told(arguments: &[&str], variables: &[(&str, &str)]) -> String {
    let mut weft = Command::new(env!("CARGO_BIN_EXE_weft"));
    let names = ["RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "NCCL_COMM_ID", "WEFT_DEVICE"];
    for name in names {
        weft.env_remove(name);
    }
    let output = weft.args(arguments).envs(variables.iter().copied()).output().expect("the program starts");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    stderr
}

#[test]
fn variables_without_sense_are_named() {
    let train = ["train", "--quiet", "--device", "cpu"];
    let of_two = [("WORLD_SIZE", "2"), ("RANK", "0"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "29500")];
    for (name, value, words) in [
        ("WORLD_SIZE", "x", "WORLD_SIZE is x"),
        ("RANK", "x", "RANK is x"),
        ("RANK", "-1", "RANK is -1"),
        ("RANK", "2", "RANK is 2, and a launcher of several processes sets it to a process's number, 0 to 1"),
        ("RANK", "", "RANK is not set"),
        ("MASTER_ADDR", "", "MASTER_ADDR is not set"),
        ("MASTER_PORT", "65535", "MASTER_PORT is 65535"),
        ("MASTER_PORT", "no", "MASTER_PORT is no"),
    ] {
        let variables = of_two.map(|(other, was)| (other, if other == name { value } else { was }));
        let told = told(&train, &variables);
        assert!(told.contains(words), "{told}");
    }
    let alike = told(&train, &of_two);
    assert!(alike.contains("2 processes were started together (WORLD_SIZE)"), "{alike}");
    assert!(!alike.contains("  "), "{alike}");
    let alone = told(&["generate", "--model", "tiny-base", "--prompt", "1"], &of_two);
    assert!(
        alone.contains(
            "2 processes were started together, but only train, eval and reproduce share work among processes"
        ),
        "{alone}"
    );
}

#[test]
fn one_process_is_none_of_several() {
    for size in ["1", "", "0"] {
        let mut weft = Command::new(env!("CARGO_BIN_EXE_weft"));
        weft.args(["recipe"]).env("WORLD_SIZE", size).env("RANK", "x");
        assert!(weft.output().expect("the program starts").status.success(), "WORLD_SIZE={size}");
    }
}

#[test]
fn the_environments_device_is_named_as_such() {
    let told = told(&["generate", "--model", "tiny-base", "--prompt", "1"], &[("WEFT_DEVICE", "gpu")]);
    assert!(told.contains("the environment variable WEFT_DEVICE is gpu"), "{told}");
}
