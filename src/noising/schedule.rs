//! Diffusion time. The rates that follow from it belong to the objectives.

/// The lower cut of `t` in training.
pub const T_MIN: f64 = 1e-3;

/// `t = (1 - t_min) u + t_min` for a uniform draw `u` in `[0, 1)`.
pub fn diffusion_time(u: f64, t_min: f64) -> f64 {
    (1.0 - t_min) * u + t_min
}
