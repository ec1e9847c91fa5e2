//! What `weft --version` prints.

use std::sync::LazyLock;

use weft_kernels::precision::Precision;

use super::installation;

/// The version, the build's features, the processor features that the kernels use, the commit, and how the program was
/// installed.
pub static VERSION: LazyLock<String> = LazyLock::new(|| {
    let features: Vec<&str> = FEATURES.iter().filter(|(_, is_on)| *is_on).map(|(name, _)| *name).collect();
    let features = if features.is_empty() { "none".to_owned() } else { features.join(", ") };
    let commit = match env!("WEFT_COMMIT") {
        "" => String::new(),
        commit => format!("\ncommit: {commit}"),
    };
    let installed = installation::installation();
    format!(
        "{}\nfeatures: {features}\nprocessor: {}{commit}\ninstalled: {installed}",
        env!("CARGO_PKG_VERSION"),
        processor()
    )
});

/// Cargo features that change what the program can do.
const FEATURES: [(&str, bool); 2] = [("hub", cfg!(feature = "hub")), ("mpi", cfg!(feature = "mpi"))];

/// The processor and which of its features the kernels can use; and what bf16 and the precision auto are on it.
fn processor() -> String {
    #[cfg(target_arch = "x86_64")]
    let found = [
        ("avx2", is_x86_feature_detected!("avx2")),
        ("fma", is_x86_feature_detected!("fma")),
        ("avx512f", is_x86_feature_detected!("avx512f")),
        ("avx512bf16", is_x86_feature_detected!("avx512bf16")),
        ("amx_bf16", Precision::Bf16x3.is_fast()),
    ];
    #[cfg(not(target_arch = "x86_64"))]
    let found: [(&str, bool); 0] = [];
    let found = found.into_iter().filter(|(_, is_there)| *is_there).map(|(name, _)| format!(" {name}"));
    let bf16 = match Precision::Bf16.is_fast() {
        true => format!("bf16 is faster than f32 ({})", Precision::Bf16.instructions()),
        false => "bf16 is computed with f32 instructions, so it is no faster".to_owned(),
    };
    let best = Precision::fastest_accurate();
    format!("{}{}\nprecision: {bf16}; auto is {best}", std::env::consts::ARCH, found.collect::<String>())
}
