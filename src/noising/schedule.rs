//! Diffusion time and the masking rate of a token.

/// The lower cut of `t` in training.
pub const T_MIN: f64 = 1e-3;

/// `t = (1 - t_min) u + t_min` for a uniform draw `u` in `[0, 1)`.
pub fn diffusion_time(u: f64, t_min: f64) -> f64 {
    (1.0 - t_min) * u + t_min
}

/// `t_i = 1 - (1 - t)^r_i`, the rate at which a token with relative uncertainty `r_i` is masked at time `t`,
/// raised to `rate_floor`. A token with `r_i = 0` is never masked, whatever the floor; at `t = 1` every other token is.
///
/// # Source
/// WeFT, arXiv 2509.20863.
pub fn token_rate(t: f64, r: f32, rate_floor: f32) -> f32 {
    if r == 0.0 {
        return 0.0;
    }
    let rate = -f64::exp_m1(f64::from(r) * f64::ln_1p(-t));
    (rate as f32).max(rate_floor)
}
