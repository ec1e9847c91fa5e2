//! Intel's tile instructions (AMX). They need leave from Linux, once per process, and a configuration of the tile
//! registers on each thread that uses them.

use crate::cpu::panels::PANEL;
use crate::cpu::tiles::{Step, Sums, Unit};

/// Tile registers that are configured on this thread; released when dropped.
pub(crate) struct Amx {
    /// The configuration belongs to the thread.
    _of_thread: std::marker::PhantomData<*const ()>,
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::asm;
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    use std::sync::LazyLock;

    use super::*;
    use crate::cpu::tiles::{ROWS, TILE, agrees};

    /// Linux's number of `arch_prctl`, its request for leave to use a component of the processor's state, and the
    /// component: the data of the tiles.
    const ARCH_PRCTL: usize = 158;
    const ARCH_REQ_XCOMP_PERM: usize = 0x1023;
    const TILE_DATA: usize = 18;

    /// Eight tiles of 16 rows of 64 bytes.
    #[repr(C, align(64))]
    struct Configuration {
        palette: u8,
        start_row: u8,
        reserved: [u8; 14],
        row_bytes: [u16; 16],
        rows: [u8; 16],
    }

    const TILES: Configuration = {
        let (mut row_bytes, mut rows) = ([0; 16], [0; 16]);
        let mut tile = 0;
        while tile < 8 {
            (row_bytes[tile], rows[tile]) = (4 * TILE as u16, TILE as u8);
            tile += 1;
        }
        Configuration { palette: 1, start_row: 0, reserved: [0; 14], row_bytes, rows }
    };

    /// Whether the tile instructions can be used: the processor has them, the operating system saves their registers and
    /// gives leave, and they compute what is documented.
    static IS_USABLE: LazyLock<bool> = LazyLock::new(|| {
        has_instructions() && has_leave() && {
            // SAFETY: the processor has the instructions, and the process may use them.
            agrees(&unsafe { Amx::configure() })
        }
    });

    /// CPUID's bits of AMX-TILE and AMX-BF16, and XCR0's of both parts of the tiles' state.
    fn has_instructions() -> bool {
        if __cpuid(0).eax < 7 || __cpuid(1).ecx >> 27 & 1 == 0 {
            return false;
        }
        let bits = __cpuid_count(7, 0).edx;
        if bits >> 24 & 1 == 0 || bits >> 22 & 1 == 0 {
            return false;
        }
        let low: u32;
        // SAFETY: OSXSAVE is set, so the instruction exists; it only reads a register.
        unsafe { asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") _, options(nomem, nostack)) };
        low >> 17 & 3 == 3
    }

    /// Asks Linux for leave to use the tiles' state on every thread of this process.
    fn has_leave() -> bool {
        if !cfg!(target_os = "linux") {
            return false;
        }
        let result: isize;
        // SAFETY: the call grants a permission and touches no memory of the program.
        unsafe {
            asm!(
                "syscall",
                inlateout("rax") ARCH_PRCTL as isize => result,
                in("rdi") ARCH_REQ_XCOMP_PERM,
                in("rsi") TILE_DATA,
                out("rcx") _,
                out("r11") _,
                options(nostack)
            );
        }
        result == 0
    }

    impl Amx {
        /// Configures this thread's tiles; `None` where the instructions can't be used.
        pub(crate) fn configured() -> Option<Self> {
            // SAFETY: the processor has the instructions, and the process may use them.
            IS_USABLE.then(|| unsafe { Self::configure() })
        }

        /// # Safety
        /// The processor has the instructions, and the process may use them.
        unsafe fn configure() -> Self {
            // SAFETY: the configuration is valid: palette 1 and eight tiles of its largest size.
            unsafe { asm!("ldtilecfg [{}]", in(reg) &TILES, options(nostack, readonly, preserves_flags)) };
            Self { _of_thread: std::marker::PhantomData }
        }
    }

    impl Drop for Amx {
        fn drop(&mut self) {
            // SAFETY: `self` exists, so the instruction does; no other value reads this thread's tiles.
            unsafe { asm!("tilerelease", options(nomem, nostack, preserves_flags)) };
        }
    }

    /// The assembly of a block: clears the sums, runs the steps, and stores the sums.
    macro_rules! block {
        ($($step:literal),*; $left:ident, $row_stride:ident, $panel:ident, $steps:ident, $step_words:expr, $sums:ident) => {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "2:",
                $($step,)*
                "add {above}, {left_step}",
                "add {below}, {left_step}",
                "add {panel}, {panel_step}",
                "dec {steps}",
                "jnz 2b",
                "tilestored [{sums} + {width}], tmm0",
                "tilestored [{sums} + {width} + 64], tmm1",
                "add {sums}, {half}",
                "tilestored [{sums} + {width}], tmm2",
                "tilestored [{sums} + {width} + 64], tmm3",
                above = inout(reg) $left => _,
                below = inout(reg) $left.wrapping_add(TILE * $row_stride) => _,
                panel = inout(reg) $panel => _,
                steps = inout(reg) $steps => _,
                sums = inout(reg) $sums.as_mut_ptr() => _,
                stride = in(reg) 4 * $row_stride,
                width = in(reg) 4 * PANEL,
                left_step = const 4 * $step_words,
                panel_step = const 4 * PANEL * $step_words,
                half = const 4 * PANEL * TILE,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack)
            )
        };
    }

    impl Unit for Amx {
        unsafe fn block(
            &self,
            left: *const f32,
            row_stride: usize,
            panel: *const f32,
            steps: usize,
            step: Step,
            sums: &mut Sums,
        ) {
            const { assert!(ROWS == 2 * TILE && PANEL == 2 * TILE) };
            if steps == 0 {
                return *sums = [[0.0; PANEL]; ROWS];
            }
            // SAFETY: this thread's tiles are configured; the caller's promise bounds what is read, and `sums` holds 32
            // rows of 32 numbers.
            unsafe {
                match step {
                    Step::Whole => block!(
                        "tileloadd tmm4, [{above} + {stride}]",
                        "tileloadd tmm6, [{panel} + {width}]",
                        "tileloadd tmm7, [{panel} + {width} + 64]",
                        "tdpbf16ps tmm0, tmm4, tmm6",
                        "tileloadd tmm5, [{below} + {stride}]",
                        "tdpbf16ps tmm1, tmm4, tmm7",
                        "tdpbf16ps tmm2, tmm5, tmm6",
                        "tdpbf16ps tmm3, tmm5, tmm7";
                        left, row_stride, panel, steps, TILE, sums
                    ),
                    Step::Split => block!(
                        // Upper by upper.
                        "tileloadd tmm4, [{above} + {stride}]",
                        "tileloadd tmm6, [{panel} + {width}]",
                        "tileloadd tmm7, [{panel} + {width} + 64]",
                        "tdpbf16ps tmm0, tmm4, tmm6",
                        "tileloadd tmm5, [{below} + {stride}]",
                        "tdpbf16ps tmm1, tmm4, tmm7",
                        "tdpbf16ps tmm2, tmm5, tmm6",
                        "tdpbf16ps tmm3, tmm5, tmm7",
                        // Upper by lower.
                        "tileloadd tmm6, [{panel} + {width} + 2048]",
                        "tileloadd tmm7, [{panel} + {width} + 2112]",
                        "tdpbf16ps tmm0, tmm4, tmm6",
                        "tdpbf16ps tmm1, tmm4, tmm7",
                        "tdpbf16ps tmm2, tmm5, tmm6",
                        "tdpbf16ps tmm3, tmm5, tmm7",
                        // Lower by upper.
                        "tileloadd tmm4, [{above} + {stride} + 64]",
                        "tileloadd tmm6, [{panel} + {width}]",
                        "tileloadd tmm7, [{panel} + {width} + 64]",
                        "tdpbf16ps tmm0, tmm4, tmm6",
                        "tileloadd tmm5, [{below} + {stride} + 64]",
                        "tdpbf16ps tmm1, tmm4, tmm7",
                        "tdpbf16ps tmm2, tmm5, tmm6",
                        "tdpbf16ps tmm3, tmm5, tmm7";
                        left, row_stride, panel, steps, 2 * TILE, sums
                    ),
                }
            }
        }
    }

    /// Whether this process can use the tile instructions.
    pub(crate) fn is_usable() -> bool {
        *IS_USABLE
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::is_usable;

#[cfg(not(target_arch = "x86_64"))]
mod elsewhere {
    use super::*;

    impl Amx {
        /// There are no tiles on this processor.
        pub(crate) fn configured() -> Option<Self> {
            None
        }
    }

    impl Unit for Amx {
        unsafe fn block(&self, _: *const f32, _: usize, _: *const f32, _: usize, _: Step, _: &mut Sums) {
            unreachable!("no value of this type exists here");
        }
    }

    /// Whether this process can use the tile instructions.
    pub(crate) fn is_usable() -> bool {
        false
    }
}

#[cfg(not(target_arch = "x86_64"))]
pub(crate) use elsewhere::is_usable;
