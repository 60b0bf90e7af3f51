//! What the name of a tensor in an adapter file says.
//!
//! `base_model.model.` + module path + suffix. The suffixes are PEFT's; wrappers of training frameworks and adapter
//! names that some exporters leave in are taken off.

/// The role of a factor beside its module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// `lora_A.weight`
    A,
    /// `lora_B.weight`
    B,
    /// `lora_B.bias`
    BBias,
    /// `lora_embedding_A`
    EmbeddingA,
    /// `lora_embedding_B`
    EmbeddingB,
    /// `lora_magnitude_vector`
    Magnitude,
    /// `lora_diag`
    Diag,
    /// `lora_E`
    E,
    /// `trainable_tokens_delta`
    Tokens,
    /// A parameter of another method, by PEFT's name.
    Of(&'static str),
}

impl Part {
    /// PEFT's spelling.
    pub fn name(self) -> &'static str {
        match self {
            Part::A => "lora_A",
            Part::B => "lora_B",
            Part::BBias => "lora_B.bias",
            Part::EmbeddingA => "lora_embedding_A",
            Part::EmbeddingB => "lora_embedding_B",
            Part::Magnitude => "lora_magnitude_vector",
            Part::Diag => "lora_diag",
            Part::E => "lora_E",
            Part::Tokens => "trainable_tokens_delta",
            Part::Of(name) => name,
        }
    }
}

/// A parsed name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Key {
    /// Part of an update of `module`; `hops` counts the `.base_layer` in front of it (parameters of one module).
    Factor {
        /// Module path in the adapter's spelling.
        module: String,
        /// `.base_layer` hops.
        hops: usize,
        /// Which part.
        part: Part,
    },
    /// The whole new value of a parameter.
    Replace {
        /// Parameter path in the adapter's spelling.
        param: String,
    },
    /// A second copy of a saved module's parameter, for where the plain one is missing. With and without the segment
    /// that may be an adapter name.
    Copy {
        /// Parameter paths that it may mean.
        params: Vec<String>,
    },
    /// A tensor of no meaning for inference, and why.
    Ignored(&'static str),
    /// A tensor of another tool's format, and that tool.
    Foreign(&'static str),
}

/// Suffixes that stand as one segment before `weight`, an adapter name, or nothing.
const FACTORS: &[(&str, Part)] = &[
    ("lora_A", Part::A),
    ("lora_B", Part::B),
    ("lora_embedding_A", Part::EmbeddingA),
    ("lora_embedding_B", Part::EmbeddingB),
    ("lora_magnitude_vector", Part::Magnitude),
    ("lora_diag", Part::Diag),
    ("lora_E", Part::E),
    ("trainable_tokens_delta", Part::Tokens),
    ("ia3_l", Part::Of("ia3_l")),
    ("hada_w1_a", Part::Of("hada_w1_a")),
    ("hada_w1_b", Part::Of("hada_w1_b")),
    ("hada_w2_a", Part::Of("hada_w2_a")),
    ("hada_w2_b", Part::Of("hada_w2_b")),
    ("hada_t1", Part::Of("hada_t1")),
    ("hada_t2", Part::Of("hada_t2")),
    ("lokr_w1", Part::Of("lokr_w1")),
    ("lokr_w1_a", Part::Of("lokr_w1_a")),
    ("lokr_w1_b", Part::Of("lokr_w1_b")),
    ("lokr_w2", Part::Of("lokr_w2")),
    ("lokr_w2_a", Part::Of("lokr_w2_a")),
    ("lokr_w2_b", Part::Of("lokr_w2_b")),
    ("lokr_t2", Part::Of("lokr_t2")),
    ("vera_lambda_b", Part::Of("vera_lambda_b")),
    ("vera_lambda_d", Part::Of("vera_lambda_d")),
    ("vera_A", Part::Of("vera_A")),
    ("vera_B", Part::Of("vera_B")),
    ("oft_R", Part::Of("oft_R")),
    ("boft_R", Part::Of("boft_R")),
    ("boft_s", Part::Of("boft_s")),
    ("fourierft_spectrum", Part::Of("fourierft_spectrum")),
    ("hra_u", Part::Of("hra_u")),
    ("miss_block", Part::Of("miss_block")),
    ("bone_block", Part::Of("miss_block")),
    ("hira_A", Part::Of("hira_A")),
    ("hira_B", Part::Of("hira_B")),
    ("delora_A", Part::Of("delora_A")),
    ("delora_B", Part::Of("delora_B")),
    ("delora_lambda", Part::Of("delora_lambda")),
    ("delora_w_norm", Part::Of("delora_w_norm")),
    ("shira_weight", Part::Of("shira_weight")),
    ("shira_indices", Part::Of("shira_indices")),
];

/// Segments that mark a tensor as training state.
const IGNORED: &[(&str, &str)] = &[
    ("ranknum", "a rank counter"),
    ("lora_velora_embed", "training state of VeLoRA"),
    ("lora_monteclora_sampler", "training state of MonteCLoRA"),
    ("original_module", "a copy of the base's own value"),
];

/// Segments that other tools write.
const FOREIGN: &[(&str, &str)] =
    &[("lora_a", "MLX"), ("lora_b", "MLX"), ("lora_down", "kohya or diffusers"), ("lora_up", "kohya or diffusers")];

/// Takes the name of a tensor apart.
pub fn parse(name: &str) -> Key {
    let mut segments: Vec<&str> =
        name.split('.').filter(|s| !matches!(*s, "_orig_mod" | "_fsdp_wrapped_module")).collect();
    if segments.first() == Some(&"module") {
        segments.remove(0);
    }
    let path = match segments[..] {
        ["base_model", "model", ref rest @ ..] => rest,
        ["base_model", ref rest @ ..] => rest,
        ref all => all,
    };
    if let Some((_, why)) = IGNORED.iter().find(|(s, _)| path.contains(s)) {
        return Key::Ignored(why);
    }
    if let Some((_, tool)) = FOREIGN.iter().find(|(s, _)| path.contains(s)) {
        return Key::Foreign(tool);
    }
    if let Some((at, part)) =
        path.iter().enumerate().find_map(|(i, s)| Some((i, FACTORS.iter().find(|(f, _)| f == s)?.1)))
        && let Some(part) = with_ending(part, &path[at + 1..])
    {
        let mut module = &path[..at];
        if part == Part::Tokens && module.last() == Some(&"token_adapter") {
            module = &module[..module.len() - 1];
        }
        let hops = module.iter().rev().take_while(|s| **s == "base_layer").count();
        return Key::Factor { module: module[..module.len() - hops].join("."), hops, part };
    }
    if let Some(at) = path.iter().position(|s| *s == "ln_tuning_layers") {
        // [name.]weight
        let last = path.last().filter(|l| matches!(**l, "weight" | "bias"));
        if let Some(last) = last {
            return Key::Replace { param: join(&path[..at], &[last]) };
        }
    }
    if let Some(at) = path.iter().position(|s| *s == "modules_to_save") {
        let rest = &path[at + 1..];
        let mut params = Vec::new();
        if rest.len() > 1 {
            params.push(join(&path[..at], &rest[1..]));
        }
        params.push(join(&path[..at], rest));
        return Key::Copy { params };
    }
    let plain: Vec<&str> = match path {
        [module @ .., "base_layer", last @ ("weight" | "bias")] => {
            let module = module.strip_suffix(&["token_adapter"]).unwrap_or(module);
            module.iter().chain([last]).copied().collect()
        }
        all => all.to_vec(),
    };
    Key::Replace { param: plain.join(".") }
}

/// What may follow a factor's segment: nothing, `weight`, `bias` (of B), each after an adapter name.
fn with_ending(part: Part, rest: &[&str]) -> Option<Part> {
    let rest = match rest {
        [first, tail @ ..] if !matches!(*first, "weight" | "bias") => tail,
        all => all,
    };
    match (part, rest) {
        (_, [] | ["weight"]) => Some(part),
        (Part::B, ["bias"]) => Some(Part::BBias),
        _ => None,
    }
}

fn join(head: &[&str], tail: &[&str]) -> String {
    head.iter().chain(tail).copied().collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn factor(module: &str, hops: usize, part: Part) -> Key {
        Key::Factor { module: module.into(), hops, part }
    }

    fn replace(param: &str) -> Key {
        Key::Replace { param: param.into() }
    }

    #[test]
    fn plain_names() {
        let q = "model.layers.0.self_attn.q_proj";
        for (name, part) in [
            ("lora_A.weight", Part::A),
            ("lora_B.weight", Part::B),
            ("lora_B.bias", Part::BBias),
            ("lora_embedding_A", Part::EmbeddingA),
            ("lora_embedding_B", Part::EmbeddingB),
            ("lora_magnitude_vector", Part::Magnitude),
            ("lora_magnitude_vector.weight", Part::Magnitude),
            ("token_adapter.trainable_tokens_delta", Part::Tokens),
            ("trainable_tokens_delta", Part::Tokens),
            // with an adapter name left in
            ("lora_A.default.weight", Part::A),
            ("lora_B.default.bias", Part::BBias),
            ("lora_embedding_A.default", Part::EmbeddingA),
            ("lora_magnitude_vector.default.weight", Part::Magnitude),
        ] {
            assert_eq!(parse(&format!("base_model.model.{q}.{name}")), factor(q, 0, part), "{name}");
        }
    }

    #[test]
    fn wrappers_come_off() {
        let want = factor("model.layers.0.q", 0, Part::A);
        for name in [
            "module.base_model.model.model.layers.0.q.lora_A.weight",
            "_orig_mod.base_model.model.model.layers.0.q.lora_A.weight",
            "base_model.model.model.layers.0._fsdp_wrapped_module.q.lora_A.weight",
            "model.layers.0.q.lora_A.weight",
        ] {
            assert_eq!(parse(name), want, "{name}");
        }
        // `original_module` contains `module.`
        assert!(matches!(parse("base_model.model.score.original_module.weight"), Key::Ignored(_)));
    }

    #[test]
    fn whole_tensors() {
        assert_eq!(parse("base_model.model.score.weight"), replace("score.weight"));
        assert_eq!(parse("base_model.model.a.q.base_layer.bias"), replace("a.q.bias"));
        assert_eq!(parse("base_model.model.a.e.token_adapter.base_layer.weight"), replace("a.e.weight"));
        assert_eq!(parse("base_model.model.a.q.lora_C.weight"), replace("a.q.lora_C.weight"));
        assert_eq!(parse("base_model.model.a.q.lora_A.oddity.more"), replace("a.q.lora_A.oddity.more"));
        assert_eq!(parse("base_model.model.a.n.ln_tuning_layers.weight"), replace("a.n.weight"));
        assert_eq!(
            parse("base_model.model.classifier.modules_to_save.default.dense.bias"),
            Key::Copy { params: vec!["classifier.dense.bias".into(), "classifier.default.dense.bias".into()] }
        );
        assert_eq!(
            parse("base_model.model.score.modules_to_save.weight"),
            Key::Copy { params: vec!["score.weight".into()] }
        );
    }

    #[test]
    fn parameters_count_their_hops() {
        let m = "model.layers.0.mlp.experts";
        assert_eq!(parse(&format!("base_model.model.{m}.lora_A.weight")), factor(m, 0, Part::A));
        assert_eq!(parse(&format!("base_model.model.{m}.base_layer.lora_A.weight")), factor(m, 1, Part::A));
    }

    #[test]
    fn shared_and_foreign_names() {
        assert_eq!(parse("base_model.vera_A"), factor("", 0, Part::Of("vera_A")));
        assert!(matches!(parse("model.layers.0.q_proj.lora_a"), Key::Foreign("MLX")));
        assert!(matches!(parse("lora_unet_down.lora_down.weight"), Key::Foreign(_)));
        assert!(matches!(parse("base_model.model.a.ranknum"), Key::Ignored(_)));
    }
}
