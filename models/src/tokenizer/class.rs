//! Chooses the tokenizer's class as `AutoTokenizer` of transformers 5 does.

use super::TokenizerError;
use super::files::Files;
use serde_json::Value;

/// A class of transformers that Skiff can build.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Class {
    /// `TokenizersBackend`, formerly `PreTrainedTokenizerFast`: takes `tokenizer.json` as it is.
    Backend,
    Albert,
    Bert,
    Camembert,
    Deberta,
    DebertaV2,
    DistilBert,
    Gemma,
    Gpt2,
    GptNeoX,
    Llama,
    MpNet,
    Qwen2,
    Roberta,
    T5,
    XlmRoberta,
}

/// Every name of a class, without `Fast` at its end. The first name of each class is its real name.
const NAMES: [(&str, Class); 25] = [
    ("TokenizersBackend", Class::Backend),
    ("PreTrainedTokenizer", Class::Backend),
    ("BloomTokenizer", Class::Backend),
    ("ParakeetTokenizer", Class::Backend),
    ("PythonBackend", Class::Backend),
    ("AlbertTokenizer", Class::Albert),
    ("BertTokenizer", Class::Bert),
    ("ConvBertTokenizer", Class::Bert),
    ("ElectraTokenizer", Class::Bert),
    ("LayoutLMTokenizer", Class::Bert),
    ("MobileBertTokenizer", Class::Bert),
    ("SqueezeBertTokenizer", Class::Bert),
    ("CamembertTokenizer", Class::Camembert),
    ("DebertaTokenizer", Class::Deberta),
    ("DebertaV2Tokenizer", Class::DebertaV2),
    ("DistilBertTokenizer", Class::DistilBert),
    ("GemmaTokenizer", Class::Gemma),
    ("GPT2Tokenizer", Class::Gpt2),
    ("GPTNeoXTokenizer", Class::GptNeoX),
    ("LlamaTokenizer", Class::Llama),
    ("MPNetTokenizer", Class::MpNet),
    ("Qwen2Tokenizer", Class::Qwen2),
    ("RobertaTokenizer", Class::Roberta),
    ("T5Tokenizer", Class::T5),
    ("XLMRobertaTokenizer", Class::XlmRoberta),
];

/// Further names of `RobertaTokenizer`.
const LIKE_ROBERTA: [&str; 2] = ["BartTokenizer", "LongformerTokenizer"];

/// Classes of transformers 5 that are written in Python and have no `tokenizer.json`.
const PYTHON_ONLY: [&str; 38] = [
    "BartphoTokenizer",
    "BertGenerationTokenizer",
    "BertJapaneseTokenizer",
    "BertTokenizerLegacy",
    "BertweetTokenizer",
    "BioGptTokenizer",
    "BlenderbotSmallTokenizer",
    "ByT5Tokenizer",
    "CTRLTokenizer",
    "CanineTokenizer",
    "CharacterTokenizer",
    "ClvpTokenizer",
    "CpmAntTokenizer",
    "CpmTokenizer",
    "DiaTokenizer",
    "EsmTokenizer",
    "FSMTTokenizer",
    "FlaubertTokenizer",
    "GPTNeoXJapaneseTokenizer",
    "GPTSw3Tokenizer",
    "M2M100Tokenizer",
    "MarianTokenizer",
    "MecabTokenizer",
    "MgpstrTokenizer",
    "MyT5Tokenizer",
    "PLBartTokenizer",
    "PerceiverTokenizer",
    "PhobertTokenizer",
    "Pop2PianoTokenizer",
    "ProphetNetTokenizer",
    "RagTokenizer",
    "RoCBertTokenizer",
    "SiglipTokenizer",
    "Speech2TextTokenizer",
    "TapasTokenizer",
    "VitsTokenizer",
    "Wav2Vec2CTCTokenizer",
    "XLMTokenizer",
];

/// Classes of transformers 5 that build a tokenizer in a way that Skiff does not know.
const NOT_BUILT: [&str; 41] = [
    "BarthezTokenizer",
    "BigBirdTokenizer",
    "BlenderbotTokenizer",
    "CLIPTokenizer",
    "CodeGenTokenizer",
    "CodeLlamaTokenizer",
    "CohereTokenizer",
    "DPRContextEncoderTokenizer",
    "DPRQuestionEncoderTokenizer",
    "DPRReaderTokenizer",
    "EsmcTokenizer",
    "FNetTokenizer",
    "FunnelTokenizer",
    "HerbertTokenizer",
    "LasrTokenizer",
    "LayoutLMv2Tokenizer",
    "LayoutLMv3Tokenizer",
    "LayoutXLMTokenizer",
    "LukeTokenizer",
    "MBart50Tokenizer",
    "MBartTokenizer",
    "MLukeTokenizer",
    "MarkupLMTokenizer",
    "NllbTokenizer",
    "NougatTokenizer",
    "OpenAIGPTTokenizer",
    "PegasusTokenizer",
    "Qwen3_5Tokenizer",
    "ReformerTokenizer",
    "RemBertTokenizer",
    "RoFormerTokenizer",
    "SeamlessM4TTokenizer",
    "Siglip2Tokenizer",
    "SplinterTokenizer",
    "Tipsv2Tokenizer",
    "UdopTokenizer",
    "VideoPrismTokenizer",
    "WhisperTokenizer",
    "XGLMTokenizer",
    "XLNetTokenizer",
    "MistralCommonBackend",
];

impl Class {
    pub(super) fn name(self) -> &'static str {
        NAMES.iter().find(|(_, class)| *class == self).map_or("TokenizersBackend", |(name, _)| name)
    }

    /// Returns true if transformers passes segment numbers (`token_type_ids`) of such a tokenizer to the model.
    pub(super) fn returns_segments(self, files: &Files) -> bool {
        match files.value("model_input_names") {
            Some(Value::Array(names)) => names.iter().any(|name| name.as_str() == Some("token_type_ids")),
            Some(_) | None => matches!(self, Self::Bert | Self::Deberta | Self::DebertaV2),
        }
    }
}

/// The class, and the file or rule that determined it.
pub(super) struct Choice {
    pub(super) class: Class,
    pub(super) by: &'static str,
}

/// Returns the class that `AutoTokenizer` chooses for the folder.
pub(super) fn choose(files: &Files) -> Result<Choice, TokenizerError> {
    let stated = files.text("tokenizer_class")?.map(|name| (name, "tokenizer_config.json"));
    let stated = stated.or_else(|| Some((files.model_class.as_deref()?, "config.json")));
    let of_model = of_model(&files.model_type);
    let Some((name, by)) = stated else {
        let class = of_model.unwrap_or(Class::Backend);
        return Ok(Choice { class, by: "the model's type in config.json" });
    };
    let named = || named(name, &files.path(by));
    let model = files.model_type.as_str();
    let own = name.strip_suffix("Fast").unwrap_or(name);
    if own == "LlamaTokenizer" && !matches!(model, "mistral" | "qwen2") && files.is_byte_level() {
        return Ok(Choice { class: Class::Backend, by: "the bytes in tokenizer.json" });
    }
    let class = match of_model {
        // Transformers distrusts the class that such a folder names.
        Some(Class::Qwen2) if model == "qwen2" => Class::Qwen2,
        Some(Class::Backend) => Class::Backend,
        Some(_) | None => named()?,
    };
    Ok(Choice { class, by })
}

/// Returns the class that transformers registers for a type of model.
fn of_model(model: &str) -> Option<Class> {
    match model {
        "bert" => Some(Class::Bert),
        "roberta" => Some(Class::Roberta),
        "xlm-roberta" => Some(Class::XlmRoberta),
        "deberta-v2" => Some(Class::DebertaV2),
        "qwen2" | "qwen3" => Some(Class::Qwen2),
        "mistral" => Some(Class::Backend),
        _ => None,
    }
}

/// Returns the class with this name. A name that transformers does not know stands for the plain backend.
fn named(name: &str, path: &std::path::Path) -> Result<Class, TokenizerError> {
    let refused = |what: &str| {
        Err(TokenizerError::Class { path: path.to_owned(), class: name.to_owned(), what: what.to_owned() })
    };
    let own = name.strip_suffix("Fast").unwrap_or(name);
    if own == "BertJapaneseTokenizer" {
        return refused(
            "cuts words with a Japanese dictionary (MeCab, Sudachi or Juman++) and has no form as tokenizer.json, so \
             save_pretrained writes none; take a model whose tokenizer has one, such as an XLM-RoBERTa, a Japanese \
             DeBERTa-v2 or ModernBERT with a SentencePiece vocabulary, or llm-jp",
        );
    }
    if PYTHON_ONLY.contains(&own) {
        return refused(
            "is written in Python and has no form as tokenizer.json, so save_pretrained writes none; take a model with a \
             fast tokenizer (the folder then has a tokenizer.json)",
        );
    }
    if NOT_BUILT.contains(&own) {
        return refused(
            "builds its tokenizer in a way that Skiff does not know; load it with transformers' AutoTokenizer, save it with \
             save_pretrained, and set \"tokenizer_class\": \"TokenizersBackend\" in the saved tokenizer_config.json",
        );
    }
    if LIKE_ROBERTA.contains(&own) {
        return Ok(Class::Roberta);
    }
    Ok(NAMES.iter().find(|(known, _)| *known == own).map_or(Class::Backend, |(_, class)| *class))
}
