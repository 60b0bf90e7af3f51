//! Task types: which head an adapter was trained with.

use super::super::{MergeError, Note};
use super::{Fields, warning};
use crate::source::quote;

/// The task that a model is for, which is to say: its head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum TaskType {
    /// Next token.
    CausalLm,
    /// Encoder and decoder.
    #[serde(rename = "SEQ_2_SEQ_LM")]
    Seq2SeqLm,
    /// One label (or value) per text.
    SeqCls,
    /// One label per token.
    TokenCls,
    /// Start and end of an answer.
    QuestionAns,
    /// Hidden states.
    FeatureExtraction,
}

impl TaskType {
    const NAMES: [(TaskType, &'static str); 6] = [
        (TaskType::CausalLm, "CAUSAL_LM"),
        (TaskType::Seq2SeqLm, "SEQ_2_SEQ_LM"),
        (TaskType::SeqCls, "SEQ_CLS"),
        (TaskType::TokenCls, "TOKEN_CLS"),
        (TaskType::QuestionAns, "QUESTION_ANS"),
        (TaskType::FeatureExtraction, "FEATURE_EXTRACTION"),
    ];

    /// PEFT's name.
    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(t, _)| *t == self).map_or("", |(_, n)| n)
    }

    /// `task_type`, else the class that `auto_mapping` names.
    pub(super) fn parse(fields: &Fields, about: &str, notes: &mut Vec<Note>) -> Result<Option<Self>, MergeError> {
        let Some(name) = fields.string("task_type")? else {
            let class = fields.map("auto_mapping")?.and_then(|m| m.get("base_model_class")).and_then(|c| c.as_str());
            return Ok(class.and_then(Self::of_class));
        };
        if let Some((task, _)) = Self::NAMES.iter().find(|(_, n)| *n == name) {
            return Ok(Some(*task));
        }
        let meant = match name {
            "QUESTION_ANSWERING" => Some(TaskType::QuestionAns),
            "OTHER" => None,
            _ => return Err(fields.bad("task_type", format!("unknown task {}", quote(name))).into()),
        };
        let text = format!("task_type {name} is not one of PEFT's; read as {}", meant.map_or("none", Self::name));
        notes.push(warning(about, text));
        Ok(meant)
    }

    /// The task of a transformers model class.
    pub fn of_class(class: &str) -> Option<Self> {
        const ENDINGS: [(&str, TaskType); 9] = [
            ("ForCausalLM", TaskType::CausalLm),
            ("LMHeadModel", TaskType::CausalLm),
            ("ForConditionalGeneration", TaskType::Seq2SeqLm),
            ("MTModel", TaskType::Seq2SeqLm),
            ("ForSequenceClassification", TaskType::SeqCls),
            ("ForTokenClassification", TaskType::TokenCls),
            ("ForQuestionAnswering", TaskType::QuestionAns),
            ("EncoderModel", TaskType::FeatureExtraction),
            ("Model", TaskType::FeatureExtraction),
        ];
        ENDINGS.iter().find(|(end, _)| class.ends_with(end)).map(|(_, task)| *task)
    }

    /// The class of this task, made of a sibling's name: `BertForMaskedLM` → `BertForSequenceClassification`.
    pub(crate) fn class_like(self, class: &str) -> Option<String> {
        let stem = class.split_once("For").map(|(stem, _)| stem).or_else(|| {
            ["LMHeadModel", "MTModel", "EncoderModel", "Model"].iter().find_map(|e| class.strip_suffix(e))
        })?;
        let ending = match self {
            TaskType::CausalLm if stem == "GPT2" => "LMHeadModel",
            TaskType::CausalLm => "ForCausalLM",
            TaskType::Seq2SeqLm if stem == "Marian" => "MTModel",
            TaskType::Seq2SeqLm => "ForConditionalGeneration",
            TaskType::SeqCls => "ForSequenceClassification",
            TaskType::TokenCls => "ForTokenClassification",
            TaskType::QuestionAns => "ForQuestionAnswering",
            TaskType::FeatureExtraction => "Model",
        };
        Some(format!("{stem}{ending}"))
    }

    /// Modules that PEFT saves for this task without being asked.
    pub(crate) fn saved_modules(self) -> &'static [&'static str] {
        match self {
            TaskType::SeqCls | TaskType::TokenCls => &["classifier", "score"],
            TaskType::QuestionAns => &["qa_outputs"],
            _ => &[],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::TaskType;

    #[test]
    fn classes_name_tasks() {
        assert_eq!(TaskType::of_class("GPT2LMHeadModel"), Some(TaskType::CausalLm));
        assert_eq!(TaskType::of_class("MarianMTModel"), Some(TaskType::Seq2SeqLm));
        assert_eq!(TaskType::of_class("BertModel"), Some(TaskType::FeatureExtraction));
        assert_eq!(TaskType::of_class("BertForMaskedLM"), None);
        let like = |task: TaskType, class| task.class_like(class).unwrap();
        assert_eq!(like(TaskType::SeqCls, "BertForMaskedLM"), "BertForSequenceClassification");
        assert_eq!(like(TaskType::SeqCls, "GPT2LMHeadModel"), "GPT2ForSequenceClassification");
        assert_eq!(like(TaskType::FeatureExtraction, "LlamaForCausalLM"), "LlamaModel");
        assert_eq!(like(TaskType::CausalLm, "LlamaModel"), "LlamaForCausalLM");
    }
}
