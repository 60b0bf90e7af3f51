//! `adapter_config.json` as types.

pub mod fields;
mod read;
mod task;

use std::path::Path;

use serde_json::{Map, Value};

pub use self::fields::{Action, Field};
pub(crate) use self::read::Fields;
pub use self::task::TaskType;
use super::method::{Kind, Method};
use super::{Level, MergeError, Note};
use crate::source::quote;

/// One field of one adapter's config, and what becomes of it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Verdict {
    /// The field.
    pub field: String,
    /// Its value, shortened.
    pub value: String,
    /// What is done with it.
    pub action: Action,
    /// In words.
    pub meaning: String,
}

/// Which modules a list or a pattern names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selection {
    /// Name endings at a dot.
    Endings(Vec<String>),
    /// One regular expression for the whole name.
    Pattern(String),
    /// `all-linear`.
    AllLinear,
}

/// `bias`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bias {
    /// No bias of the base changes.
    None,
    /// All biases are in the file.
    All,
    /// Those of targeted layers are.
    LoraOnly,
}

/// `init_lora_weights`, as far as it matters afterwards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Init {
    /// The base stayed as it was.
    Plain,
    /// The base lost its leading singular part.
    Pissa,
    /// The base lost its leading QR part.
    Olora,
    /// The base was changed in a way that cannot be computed again; the word.
    Lost(String),
}

/// `trainable_token_indices`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tokens {
    /// Rows of the input embedding.
    Input(Vec<usize>),
    /// Rows by module ending.
    ByModule(Vec<(String, Vec<usize>)>),
}

/// `use_bdlora`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockDiagonal {
    /// Number of blocks.
    pub blocks: usize,
    /// A path that contains one of these has a block-diagonal A.
    pub a: Vec<String>,
    /// A path that contains one of these has a block-diagonal B.
    pub b: Vec<String>,
}

/// The fields of an adapter's config that say how its tensors act. Those of LoRA are unset for other methods.
#[derive(Debug, Clone)]
pub struct AdapterConfig {
    /// `r`; 0 where another method's file leaves it to the tensors.
    pub r: usize,
    /// `lora_alpha`, or `alpha` of other methods.
    pub alpha: f64,
    /// `use_rslora`.
    pub rslora: bool,
    /// `rank_pattern` in file order.
    pub rank_pattern: Vec<(String, usize)>,
    /// `alpha_pattern` in file order.
    pub alpha_pattern: Vec<(String, f64)>,
    /// `target_modules`.
    pub target_modules: Option<Selection>,
    /// `exclude_modules`.
    pub exclude_modules: Option<Selection>,
    /// `target_parameters`.
    pub target_parameters: Vec<String>,
    /// `layers_to_transform`.
    pub layers_to_transform: Option<Vec<usize>>,
    /// `layers_pattern`.
    pub layers_pattern: Vec<String>,
    /// `layer_replication`.
    pub layer_replication: Option<Vec<(usize, usize)>>,
    /// `use_dora`.
    pub dora: bool,
    /// `lora_bias`.
    pub lora_bias: bool,
    /// `bias`.
    pub bias: Bias,
    /// `modules_to_save`.
    pub modules_to_save: Vec<String>,
    /// `init_lora_weights`.
    pub init: Init,
    /// `trainable_token_indices`.
    pub tokens: Option<Tokens>,
    /// `ensure_weight_tying`.
    pub ensure_weight_tying: bool,
    /// `task_type`, else what `auto_mapping` says.
    pub task: Option<TaskType>,
    /// `alora_invocation_tokens`.
    pub invocation_tokens: Option<Vec<u32>>,
    /// `use_bdlora`.
    pub block_diagonal: Option<BlockDiagonal>,
    /// `kasa_config` is set.
    pub kasa: bool,
    /// `qalora_group_size`, where `use_qalora` is set.
    pub qalora: Option<usize>,
    /// Major and minor number of `peft_version`.
    pub peft_version: Option<(u32, u32)>,
    /// `base_model_name_or_path`.
    pub base_model: Option<String>,
    /// `revision`: that of the base.
    pub revision: Option<String>,
}

/// A config, the verdict on each of its fields, and what is worth saying.
#[derive(Debug)]
pub struct Parsed {
    /// The typed fields.
    pub config: AdapterConfig,
    /// One entry per field in the file, in its order.
    pub verdicts: Vec<Verdict>,
    /// Notes about it.
    pub notes: Vec<Note>,
}

impl AdapterConfig {
    /// Reads the config of an adapter. `force` turns unknown fields into warnings.
    pub fn parse(
        file: &Path,
        object: &Map<String, Value>,
        method: &Method,
        about: &str,
        force: bool,
    ) -> Result<Parsed, MergeError> {
        let fields = Fields::new(file, object);
        let mut notes = Vec::new();
        let verdicts = judge(&fields, object, method, about, force, &mut notes)?;
        let lora = method.kind == Kind::Lora;

        let r = match fields.get("r") {
            // OFT leaves it at 0 where oft_block_size says the size.
            Some(r) if method.name == "OFT" => fields.index("r", r)?,
            Some(r) => fields.rank("r", r)?,
            None if lora => return Err(fields.bad("r", "missing: the rank is not a thing to guess").into()),
            None => 0,
        };
        let alpha = match method.alpha {
            None => 1.0,
            Some(field) => fields.number(field)?.ok_or_else(|| {
                fields.bad(field, "missing: PEFT would take 8, which is a guess about somebody's training")
            })?,
        };
        if alpha <= 0.0 {
            notes.push(warning(about, format!("alpha is {alpha}: the adapter is switched off or reversed")));
        }
        // AdaLoRA keeps its pruning masks under the name; the rows that they drop are gone from the tensors.
        let mut rank_pattern = Vec::new();
        for (key, value) in fields.map("rank_pattern")?.into_iter().flatten().filter(|_| method.kind != Kind::AdaLora) {
            rank_pattern.push((key.clone(), fields.rank(&format!("rank_pattern.{}", quote(key)), value)?));
        }
        let mut alpha_pattern = Vec::new();
        for (key, value) in fields.map("alpha_pattern")?.into_iter().flatten() {
            alpha_pattern.push((key.clone(), fields.as_number(&format!("alpha_pattern.{}", quote(key)), value)?));
        }
        let config = Self {
            r,
            alpha,
            rslora: lora && fields.bool("use_rslora")?,
            rank_pattern,
            alpha_pattern,
            target_modules: selection(&fields, "target_modules")?,
            exclude_modules: selection(&fields, "exclude_modules")?,
            target_parameters: if lora { fields.strings("target_parameters")? } else { Vec::new() },
            layers_to_transform: layers(&fields)?,
            layers_pattern: match fields.get("layers_pattern") {
                Some(Value::String(one)) => vec![one.clone()],
                _ => fields.strings("layers_pattern")?,
            },
            layer_replication: if lora { replication(&fields)? } else { None },
            dora: lora && fields.bool("use_dora")?,
            lora_bias: lora && fields.bool("lora_bias")?,
            bias: match fields.string("bias")? {
                None | Some("none") => Bias::None,
                Some("all") => Bias::All,
                Some("lora_only") => Bias::LoraOnly,
                Some(word) if !lora && word.ends_with("_only") => Bias::LoraOnly,
                Some(other) => return Err(fields.bad("bias", format!("unknown mode {}", quote(other))).into()),
            },
            modules_to_save: fields.strings("modules_to_save")?,
            init: if lora { init(&fields)? } else { Init::Plain },
            tokens: match method.kind {
                Kind::Lora => tokens(&fields, "trainable_token_indices")?,
                Kind::TrainableTokens => tokens(&fields, "token_indices")?,
                _ => None,
            },
            ensure_weight_tying: lora && fields.bool("ensure_weight_tying")?,
            task: TaskType::parse(&fields, about, &mut notes)?,
            invocation_tokens: if lora { invocation(&fields)? } else { None },
            block_diagonal: if lora { block_diagonal(&fields)? } else { None },
            kasa: lora && fields.get("kasa_config").is_some(),
            qalora: match lora && fields.bool("use_qalora")? {
                true => Some(match fields.get("qalora_group_size") {
                    Some(size) => fields.rank("qalora_group_size", size)?,
                    None => 16,
                }),
                false => None,
            },
            peft_version: fields.string("peft_version")?.and_then(version),
            base_model: fields.string("base_model_name_or_path")?.map(str::to_owned),
            revision: fields.string("revision")?.filter(|r| !r.is_empty()).map(str::to_owned),
        };
        config.check_together(&fields)?;
        Ok(Parsed { config, verdicts, notes })
    }

    /// Combinations that PEFT itself does not allow; a file that has them was not written by it.
    fn check_together(&self, fields: &Fields) -> Result<(), MergeError> {
        let together = |a: &str, b: &str| Err(fields.bad(a, format!("cannot be together with {b}")).into());
        if self.dora && self.lora_bias {
            return together("use_dora", "lora_bias");
        }
        if self.kasa && (self.dora || self.lora_bias) {
            return together("kasa_config", if self.dora { "use_dora" } else { "lora_bias" });
        }
        if !self.target_parameters.is_empty() && (self.dora || self.lora_bias) {
            return together("target_parameters", if self.dora { "use_dora" } else { "lora_bias" });
        }
        if self.layers_to_transform.is_some() && matches!(self.target_modules, Some(Selection::Pattern(_))) {
            return together("layers_to_transform", "a pattern in target_modules");
        }
        Ok(())
    }

    /// `alpha / r`, or `alpha / sqrt(r)` with rank-stabilised scaling.
    pub fn scale(&self, alpha: f64, r: usize) -> f64 {
        if self.rslora { alpha / (r as f64).sqrt() } else { alpha / r as f64 }
    }
}

/// The verdict on every field of the file; unknown ones that look set are refused, and so are known ones whose
/// mathematics are not done here.
fn judge(
    fields: &Fields,
    object: &Map<String, Value>,
    method: &Method,
    about: &str,
    force: bool,
    notes: &mut Vec<Note>,
) -> Result<Vec<Verdict>, MergeError> {
    if object.contains_key("lora_parameters") {
        let why = "this is an MLX adapter; convert it to PEFT first";
        return Err(MergeError::refused(fields.file, "lora_parameters", why));
    }
    let mut verdicts = Vec::new();
    for (name, value) in object {
        let (action, meaning) = match fields::find(name, method) {
            Some(field) => {
                let ada = method.kind == Kind::AdaLora && field.is_lora_only() && method.alpha != Some(field.name);
                if (field.action == Action::Refused || ada) && !field.is_default(value) {
                    let why = if ada { "AdaLoRA does not have it" } else { field.meaning };
                    return Err(MergeError::refused(fields.file, field.name, why));
                }
                (field.action, field.meaning.to_owned())
            }
            None if read::looks_default(value) => {
                (Action::Irrelevant, "not a field of PEFT 0.21; it looks unset".to_owned())
            }
            None if force => {
                notes.push(warning(about, format!("the unknown field {} is ignored, as forced", quote(name))));
                (Action::Irrelevant, "unknown, ignored as forced".to_owned())
            }
            None => {
                let why =
                    format!("unknown field of {}; it may change the mathematics (--force ignores it)", method.name);
                return Err(fields.bad(name, why).into());
            }
        };
        verdicts.push(Verdict { field: name.clone(), value: shown(value), action, meaning });
    }
    Ok(verdicts)
}

fn shown(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= 60 { text } else { text.chars().take(57).chain("…".chars()).collect() }
}

pub(crate) fn warning(about: &str, text: String) -> Note {
    Note { level: Level::Warning, about: about.to_owned(), text }
}

pub(crate) fn info(about: &str, text: String) -> Note {
    Note { level: Level::Info, about: about.to_owned(), text }
}

fn selection(fields: &Fields, field: &str) -> Result<Option<Selection>, MergeError> {
    Ok(match fields.get(field) {
        None => None,
        Some(Value::String(s)) if s.eq_ignore_ascii_case("all-linear") => Some(Selection::AllLinear),
        Some(Value::String(s)) => Some(Selection::Pattern(s.clone())),
        Some(_) => Some(Selection::Endings(fields.strings(field)?)),
    })
}

fn layers(fields: &Fields) -> Result<Option<Vec<usize>>, MergeError> {
    let field = "layers_to_transform";
    Ok(match fields.get(field) {
        None => None,
        Some(list @ Value::Array(items)) if !items.is_empty() => Some(fields.indices(field, list)?),
        Some(Value::Array(_)) => None,
        Some(one) => Some(vec![fields.index(field, one)?]),
    })
}

fn replication(fields: &Fields) -> Result<Option<Vec<(usize, usize)>>, MergeError> {
    let field = "layer_replication";
    let Some(value) = fields.get(field) else { return Ok(None) };
    let ranges = value.as_array().ok_or_else(|| fields.bad(field, "is not a list of ranges"))?;
    let mut out = Vec::new();
    for range in ranges {
        match fields.indices(field, range)?[..] {
            [start, end] if start < end => out.push((start, end)),
            _ => return Err(fields.bad(field, format!("{range} is not a range [start, end)")).into()),
        }
    }
    Ok((!out.is_empty()).then_some(out))
}

fn init(fields: &Fields) -> Result<Init, MergeError> {
    let field = "init_lora_weights";
    let word = match fields.get(field) {
        None | Some(Value::Bool(_)) => return Ok(Init::Plain),
        Some(value) => fields.as_string(field, value)?,
    };
    match word.as_str() {
        "gaussian" | "orthogonal" | "eva" | "mica" => Ok(Init::Plain),
        "pissa" => Ok(Init::Pissa),
        "olora" => Ok(Init::Olora),
        "corda" | "lora_ga" | "loftq" => Ok(Init::Lost(word)),
        _ if word.starts_with("pissa_niter_") => Ok(Init::Lost(word)),
        _ => Err(fields.bad(field, format!("unknown start {}", quote(&word))).into()),
    }
}

fn tokens(fields: &Fields, field: &str) -> Result<Option<Tokens>, MergeError> {
    Ok(match fields.get(field) {
        None => None,
        Some(Value::Object(map)) => {
            let by_module = map.iter().map(|(m, v)| Ok((m.clone(), fields.indices(field, v)?)));
            Some(Tokens::ByModule(by_module.collect::<Result<_, MergeError>>()?))
        }
        Some(list) => Some(Tokens::Input(fields.indices(field, list)?)),
    })
}

fn invocation(fields: &Fields) -> Result<Option<Vec<u32>>, MergeError> {
    let field = "alora_invocation_tokens";
    let Some(value) = fields.get(field) else { return Ok(None) };
    let ids = fields.indices(field, value)?;
    if ids.is_empty() {
        return Err(fields.bad(field, "is empty").into());
    }
    let ids: Result<_, _> = ids.into_iter().map(u32::try_from).collect();
    Ok(Some(ids.map_err(|_| fields.bad(field, "a token id is too large"))?))
}

fn block_diagonal(fields: &Fields) -> Result<Option<BlockDiagonal>, MergeError> {
    let field = "use_bdlora";
    let Some(value) = fields.get(field) else { return Ok(None) };
    let map = match value {
        Value::Bool(false) => return Ok(None),
        Value::Object(map) => map,
        _ => return Err(fields.bad(field, "is not an object").into()),
    };
    let inner = Fields::new(fields.file, map);
    let blocks = map.get("nblocks").ok_or_else(|| fields.bad("use_bdlora.nblocks", "missing"))?;
    Ok(Some(BlockDiagonal {
        blocks: fields.rank("use_bdlora.nblocks", blocks)?,
        a: inner.strings("target_modules_bd_a")?,
        b: inner.strings("target_modules_bd_b")?,
    }))
}

/// `"0.19.1.dev0"` → (0, 19).
fn version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}
