//! Rotary frequencies from the config, as transformers' `modeling_rope_utils` defines them.

use std::f64::consts::PI;

use crate::config::Config;
use crate::error::ModelError;

/// One rotary table.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Inverse frequencies, one per rotated pair.
    pub inv_freq: Vec<f32>,
    /// Factor of cos and sin.
    pub scale: f32,
    /// Pairs are neighbours (GPT-J) instead of half the rotated part apart (Llama).
    pub interleaved: bool,
    /// Other frequencies for long contexts.
    pub long: Option<LongRope>,
}

/// Frequencies that hold for contexts longer than some length (LongRoPE).
#[derive(Clone, Debug, PartialEq)]
pub struct LongRope {
    /// Inverse frequencies.
    pub inv_freq: Vec<f32>,
    /// The length.
    pub above: u32,
}

fn base_frequencies(theta: f64, dim: usize) -> Vec<f32> {
    // f32 steps as in the framework: exponent, power and reciprocal are each rounded.
    (0..dim / 2)
        .map(|i| {
            let exponent = (2 * i) as f32 / dim as f32;
            1.0 / theta.powf(f64::from(exponent)) as f32
        })
        .collect()
}

/// Elements of a head that are rotated: all, or the share that `partial_rotary_factor` (or the older `field`) says.
///
/// # Errors
/// Not a share, or an odd number of elements.
pub fn rotated(config: Config<'_>, field: &'static str, head_dim: usize, default: f64) -> Result<usize, ModelError> {
    let nested = config.object("rope_parameters");
    let share = match nested.map(|n| n.optional_number("partial_rotary_factor")).transpose()?.flatten() {
        Some(share) => share,
        None => config.number_or(field, default)?,
    };
    let dim = (head_dim as f64 * share) as usize;
    if !(0.0..=1.0).contains(&share) || dim < 2 || !dim.is_multiple_of(2) {
        return Err(config.unsupported(field, "a share of the head that gives an even number of elements"));
    }
    Ok(dim)
}

/// Reads `rope_parameters` (transformers 5) or `rope_theta` + `rope_scaling` (4.x). `dim` is the rotated part of a head.
///
/// # Errors
/// An unknown rope type, or parameters out of range.
pub fn rope(config: Config<'_>, dim: usize, max_positions: usize) -> Result<Rope, ModelError> {
    let nested = config.object("rope_parameters").or_else(|| config.object("rope_scaling"));
    let theta = config.number_or("rope_theta", 10000.0)?;
    rope_of(config, nested, theta, dim, max_positions)
}

/// The table of one kind of layers: `rope_parameters.<kind>` (transformers 5), else `theta` of the field `theta_field` and
/// `scaling`.
///
/// # Errors
/// As [`rope`].
pub fn rope_of_kind(
    config: Config<'_>,
    kind: &str,
    (theta_field, theta): (&str, f64),
    scaling: Option<Config<'_>>,
    (dim, max_positions): (usize, usize),
) -> Result<Rope, ModelError> {
    let nested = config.object("rope_parameters").and_then(|p| p.object(kind)).or(scaling);
    rope_of(config, nested, config.number_or(theta_field, theta)?, dim, max_positions)
}

fn rope_of(
    config: Config<'_>,
    nested: Option<Config<'_>>,
    theta: f64,
    dim: usize,
    max_positions: usize,
) -> Result<Rope, ModelError> {
    let theta = nested.map(|n| n.optional_number("rope_theta")).transpose()?.flatten().unwrap_or(theta);
    if !(1.0..1e12).contains(&theta) {
        return Err(config.unsupported("rope_theta", "a number from 1 to 1e12"));
    }
    let params = nested.unwrap_or(config);
    let kind = match nested {
        Some(n) => n.text("rope_type")?.or(n.text("type")?).unwrap_or("default"),
        None => "default",
    };
    let mut inv_freq = base_frequencies(theta, dim);
    let mut scale = 1.0;
    let factor = || -> Result<f64, ModelError> {
        let f = params.number_or("factor", 1.0)?;
        if f >= 1.0 { Ok(f) } else { Err(params.unsupported("factor", "a rope factor of at least 1")) }
    };
    match kind {
        "default" => {}
        "linear" => {
            let f = factor()? as f32;
            inv_freq.iter_mut().for_each(|v| *v /= f);
        }
        "llama3" => llama3(params, factor()?, max_positions, &mut inv_freq)?,
        "longrope" | "su" => return longrope(config, params, theta, dim, max_positions),
        "yarn" => scale = yarn(params, factor()?, theta, dim, max_positions, &mut inv_freq)?,
        other => {
            return Err(ModelError::Config {
                field: "rope_scaling.rope_type".into(),
                found: other.into(),
                expected: "one of the supported rope types: default, linear, llama3, yarn, longrope".into(),
            });
        }
    }
    Ok(Rope { inv_freq, scale, interleaved: false, long: None })
}

/// LongRoPE (Phi-3): every frequency has a divisor of its own, one list up to the original context and one beyond.
fn longrope(
    config: Config<'_>,
    params: Config<'_>,
    theta: f64,
    dim: usize,
    max_positions: usize,
) -> Result<Rope, ModelError> {
    let original = match params.optional_u32("original_max_position_embeddings")? {
        Some(n) => n,
        None => config.count_or("original_max_position_embeddings", 1 << 24, max_positions)? as u32,
    };
    let frequencies = |field: &str| {
        let factors = params.numbers(field)?.filter(|f| f.len() == dim / 2 && f.iter().all(|v| *v > 0.0));
        let factors = factors.ok_or_else(|| params.unsupported(field, &format!("{} positive numbers", dim / 2)))?;
        // The framework's order of roundings: power, product, reciprocal.
        let one = |(i, f): (usize, &f64)| {
            let exponent = (2 * i) as f32 / dim as f32;
            1.0 / (*f as f32 * theta.powf(f64::from(exponent)) as f32)
        };
        Ok::<_, ModelError>(factors.iter().enumerate().map(one).collect::<Vec<f32>>())
    };
    let stretch = match params.optional_number("factor")? {
        Some(factor) if config.get("original_max_position_embeddings").is_none() => factor,
        _ => max_positions as f64 / f64::from(original),
    };
    let scale = match params.optional_number("attention_factor")? {
        Some(a) => a,
        None if stretch <= 1.0 => 1.0,
        None => (1.0 + stretch.ln() / f64::from(original).ln()).sqrt(),
    };
    if original < 2 || !scale.is_finite() {
        return Err(config.unsupported("original_max_position_embeddings", "at least 2"));
    }
    let long = LongRope { inv_freq: frequencies("long_factor")?, above: original };
    Ok(Rope { inv_freq: frequencies("short_factor")?, scale: scale as f32, interleaved: false, long: Some(long) })
}

/// Llama 3.1: long wavelengths are divided by the factor, short ones kept, a smooth ramp between.
fn llama3(params: Config<'_>, factor: f64, max_positions: usize, inv_freq: &mut [f32]) -> Result<(), ModelError> {
    let low = params.number_or("low_freq_factor", 1.0)?;
    let high = params.number_or("high_freq_factor", 4.0)?;
    let old = params.number_or("original_max_position_embeddings", max_positions as f64)?;
    if low <= 0.0 || high <= low || old < 1.0 {
        return Err(params.unsupported("high_freq_factor", "rope factors with 0 < low_freq_factor < high_freq_factor"));
    }
    let (low_wavelen, high_wavelen) = (old / low, old / high);
    for v in inv_freq {
        let f = f64::from(*v);
        let wavelen = f64::from((2.0 * PI) as f32 / *v);
        let scaled = if wavelen > low_wavelen {
            f / factor
        } else if wavelen < high_wavelen {
            f
        } else {
            let smooth = (old / wavelen - low) / (high - low);
            (1.0 - smooth) * f / factor + smooth * f
        };
        *v = scaled as f32;
    }
    Ok(())
}

/// YaRN (Peng et al. 2023): interpolated and extrapolated frequencies blended by a ramp over the dimensions.
fn yarn(
    params: Config<'_>,
    factor: f64,
    theta: f64,
    dim: usize,
    max_positions: usize,
    inv_freq: &mut [f32],
) -> Result<f32, ModelError> {
    let old = params.number_or("original_max_position_embeddings", max_positions as f64)?;
    let beta_fast = params.number_or("beta_fast", 32.0)?;
    let beta_slow = params.number_or("beta_slow", 1.0)?;
    let truncate = params.flag_or("truncate", true)?;
    let mscale = |m: f64| if factor <= 1.0 { 1.0 } else { 0.1 * m * factor.ln() + 1.0 };
    let attention = match (
        params.optional_number("attention_factor")?,
        params.optional_number("mscale")?,
        params.optional_number("mscale_all_dim")?,
    ) {
        (Some(a), ..) => a,
        (None, Some(m), Some(all)) if m != 0.0 && all != 0.0 => mscale(m) / mscale(all),
        _ => mscale(1.0),
    };
    let correction = |rotations: f64| dim as f64 * (old / (rotations * 2.0 * PI)).ln() / (2.0 * theta.ln());
    let (mut low, mut high) = (correction(beta_fast), correction(beta_slow));
    if truncate {
        (low, high) = (low.floor(), high.ceil());
    }
    (low, high) = (low.max(0.0), high.min(dim as f64 - 1.0));
    if low == high {
        high += 0.001;
    }
    for (i, v) in inv_freq.iter_mut().enumerate() {
        let ramp = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
        let f = f64::from(*v);
        *v = (f / factor * ramp + f * (1.0 - ramp)) as f32;
    }
    Ok(attention as f32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn default_and_linear() {
        let c = json!({"rope_theta": 10000.0});
        let r = rope(Config::new(&c), 8, 128).unwrap();
        assert_eq!(r.inv_freq, [1.0, 0.1, 0.01, 0.001]);
        let c = json!({"rope_theta": 10000.0, "rope_scaling": {"type": "linear", "factor": 2.0}});
        assert_eq!(rope(Config::new(&c), 8, 128).unwrap().inv_freq, [0.5, 0.05, 0.005, 0.0005]);
    }

    #[test]
    fn llama3_keeps_high_and_divides_low_frequencies() {
        let c = json!({"rope_parameters": {"rope_theta": 10000.0, "rope_type": "llama3", "factor": 8.0,
            "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}});
        let r = rope(Config::new(&c), 8, 512).unwrap();
        assert_eq!(r.inv_freq[0], 1.0);
        assert_eq!(r.inv_freq[3], 0.001 / 8.0);
    }

    #[test]
    fn unknown_type_is_named() {
        let c = json!({"rope_scaling": {"rope_type": "spiral"}});
        assert!(rope(Config::new(&c), 8, 128).unwrap_err().to_string().contains("rope"));
    }
}
