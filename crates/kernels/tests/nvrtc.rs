//! Compiles the kernels' source with NVRTC for every supported architecture; this needs no GPU.

use std::io::Write;

use weft_kernels::cuda::{ARCHITECTURES, compile_for};

#[test]
fn the_kernels_compile_for_every_architecture() {
    for architecture in ARCHITECTURES {
        match compile_for(architecture) {
            // NVRTC produces an ELF file.
            Ok(cubin) => assert!(cubin.starts_with(b"\x7fELF") && cubin.len() > 1 << 16, "sm_{architecture}"),
            Err(reason) if reason.contains("was not found") => {
                let _ = writeln!(std::io::stderr(), "SKIPPED: no kernel is compiled: {reason}");
                return;
            }
            Err(reason) => panic!("{reason}"),
        }
    }
}
