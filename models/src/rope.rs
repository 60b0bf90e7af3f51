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

/// Reads `rope_parameters` (transformers 5) or `rope_theta` + `rope_scaling` (4.x). `dim` is the rotated part of a head.
///
/// # Errors
/// An unknown rope type, or parameters out of range.
pub fn rope(config: Config<'_>, dim: usize, max_positions: usize) -> Result<Rope, ModelError> {
    let nested = config.object("rope_parameters").or_else(|| config.object("rope_scaling"));
    let theta = match nested.map(|n| n.optional_number("rope_theta")).transpose()?.flatten() {
        Some(t) => t,
        None => config.number_or("rope_theta", 10000.0)?,
    };
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
        "yarn" => scale = yarn(params, factor()?, theta, dim, max_positions, &mut inv_freq)?,
        other => {
            return Err(ModelError::Config {
                field: "rope_scaling.rope_type".into(),
                found: other.into(),
                expected: "one of the supported rope types: default, linear, llama3, yarn".into(),
            });
        }
    }
    Ok(Rope { inv_freq, scale })
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
