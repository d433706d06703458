"""Writes small tokenizers of the common families, with settings beside them, and the tokens that transformers makes of them.

usage: make_tokenizers.py OUT_DIR      (needs: transformers; `make golden` runs it, the tests only read)

OUT_DIR/FAMILY/config.json, tokenizer.json, tokenizer_config.json, ...    a checkpoint's folder without weights
OUT_DIR/FAMILY/expected.json    texts and pairs, whole and cut, with the tokens of AutoTokenizer.from_pretrained(folder)

In most folders tokenizer.json alone gives other tokens than the settings beside it. Unigram's trainer draws other vocabularies in every run, so all
files of a family change together.
"""
import json, os, shutil, sys
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXTS = [
    "The Quick brown fox can't jump over the lazy dog, isn't it?",
    "À Noël, l'élève naïve mangea une crème brûlée à Besançon.",
    "Größe und Maß: die Straße ist geöffnet; I\u0307stanbul, Kraków, Đà Nẵng.",
    "Η γρήγορη αλεπού πηδάει πάνω από το τεμπέλικο σκυλί.",
    "Съешь ещё этих мягких французских булок, да выпей чаю! Йод.",
    "القِطَّةُ السوداء تجلس على السجادة في البيت.",
    "הַחתול השחור יושב על השטיח בבית.",
    "हिन्दी में लिखा हुआ यह वाक्य छोटा है।",
    "แมวสีดำนั่งอยู่บนเสื่อในบ้าน",
    "今天天气很好，我们去公园散步吧。東京都。",
    "ねこはマットのうえにすわっています。ｶﾀｶﾅ　ガギグ",
    "검은 고양이가 매트 위에 앉아 있다. 한국어",
    "Emoji 👍🏽 family 👨‍👩‍👧 flag 🇪🇺 heart ❤️ and x² ½ ﬁne №5",
    "  two  spaces,\ttab\nand  lines \r\n trailing   ",
    "[USER] hello [BOT] HELLO<|im_start|>user<mask>[MASK] </s> [SEP] x",
    "e\u0301 = é, A\u030A = Å, ①②③ ＦＵＬＬ width, ``quoted'' \"text\" #tag @name 3,141.59",
    "don't DON'T we'll WE'LL 1234567 tokens_with_underscores CamelCase",
    "\u200bzero\u00adwidth\ufeff \x07bell \u2028line",
    "a",
]
PAIRS = [(0, 3), (1, 1), (9, 12), (14, 5), (18, 7)]
BERT = dict(unk_token="[UNK]", sep_token="[SEP]", pad_token="[PAD]", cls_token="[CLS]", mask_token="[MASK]")
ROBERTA = dict(bos_token="<s>", eos_token="</s>", unk_token="<unk>", sep_token="</s>", pad_token="<pad>", cls_token="<s>", mask_token="<mask>")

# Vocabularies ----------------------------------------------------------------------------------------------------------------


def word_pieces(first=("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"), unknown="[UNK]", lower=False):
    tokenizer = Tokenizer(models.WordPiece(unk_token=unknown))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lower, strip_accents=lower)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    more = [text.lower() for text in TEXTS] + [normalizers.BertNormalizer(lowercase=True).normalize_str(text) for text in TEXTS]
    learn(tokenizer, trainers.WordPieceTrainer(vocab_size=760, special_tokens=list(first), show_progress=False), more)
    cls, sep = (first[2], 2), (first[3], 3)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls[0]} $A {sep[0]}", pair=f"{cls[0]} $A {sep[0]} $B:1 {sep[0]}:1", special_tokens=[cls, sep])
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def byte_pairs(first, space=False):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    learn(tokenizer, trainers.BpeTrainer(vocab_size=520, special_tokens=list(first), initial_alphabet=alphabet, show_progress=False))
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def pieces(first, unknown):
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    learn(tokenizer, trainers.UnigramTrainer(vocab_size=560, special_tokens=list(first), unk_token=unknown, show_progress=False))
    return tokenizer


def llama_pairs():
    first = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    learn(tokenizer, trainers.BpeTrainer(vocab_size=640, limit_alphabet=90, special_tokens=first, show_progress=False))
    parts = json.loads(tokenizer.to_str())
    parts["added_tokens"] = parts["added_tokens"][:3]    # the bytes are plain entries of the vocabulary
    tokenizer = Tokenizer.from_str(json.dumps(parts))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)])
    return tokenizer


def learn(tokenizer, trainer, more=()):
    tokenizer.train_from_iterator([*TEXTS, *more] * 4, trainer)


# Families --------------------------------------------------------------------------------------------------------------------


def token(content, **flags):
    return dict(dict(content=content, lstrip=False, normalized=False, rstrip=False, single_word=False, special=True), **flags)


def families():
    """Yields name, type of the model, tokenizer, tokenizer_config.json and further files."""
    uncased = lambda: word_pieces(lower=True)
    marked = token("[USER]", normalized=True, special=False)
    yield "bert-uncased", "bert", word_pieces(), None, {}    # nothing beside tokenizer.json: the class's defaults count
    yield "bert-cased", "bert", uncased(), dict(BERT, tokenizer_class="BertTokenizer", do_lower_case=False), \
        {"added_tokens.json": {"[USER]": 760, "[BOT]": 761}}
    yield "bert-accents", "bert", uncased(), dict(BERT, tokenizer_class="BertTokenizerFast", do_lower_case=True, strip_accents=False,
                                                  tokenize_chinese_chars=False, truncation_side="left", model_max_length=20), {}
    yield "bert-no-segments", "bert", uncased(), dict(BERT, tokenizer_class="PreTrainedTokenizerFast"), {}
    yield "bert-vocab", "bert", uncased(), dict(BERT, tokenizer_class="BertTokenizer", do_lower_case=False), {"vocab.txt": None}
    yield "distilbert", "bert", word_pieces(), dict(BERT, tokenizer_class="DistilBertTokenizer", do_lower_case=True,
                                                    added_tokens_decoder={"770": marked, "771": token("[BOT]", lstrip=True)}), {}
    yield "electra", "bert", uncased(), dict(BERT, tokenizer_class="ElectraTokenizerFast", do_lower_case=False, strip_accents=True), \
        {"special_tokens_map.json": dict(BERT, additional_special_tokens=["[BOT]", "[USER]"])}
    mpnet = word_pieces(("<pad>", "[UNK]", "<s>", "</s>", "<mask>"))
    yield "mpnet", "bert", mpnet, dict(tokenizer_class="MPNetTokenizer", do_lower_case=True, truncation_side="left"), {}
    roberta = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
    yield "roberta", "roberta", byte_pairs(roberta, space=True), None, {}
    yield "roberta-space", "roberta", byte_pairs(roberta), dict(ROBERTA, tokenizer_class="RobertaTokenizer", add_prefix_space=True,
                                                                mask_token=dict(token("<mask>", lstrip=True), __type="AddedToken")), {}
    yield "deberta", "deberta-v2", byte_pairs(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")), \
        dict(BERT, tokenizer_class="DebertaTokenizer", truncation_side="left"), {}
    deberta = pieces(("[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"), "[UNK]")
    yield "deberta-v2", "deberta-v2", deberta, dict(BERT, tokenizer_class="DebertaV2Tokenizer", do_lower_case=True, split_by_punct=True), {}
    yield "xlm-roberta", "xlm-roberta", pieces(("<s>", "<pad>", "</s>", "<unk>", "<mask>"), "<unk>"), \
        dict(ROBERTA, tokenizer_class="XLMRobertaTokenizerFast", extra_special_tokens=["[BOT]"], truncation_side="left"), {}
    yield "albert", "bert", pieces(("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"), "<unk>"), \
        dict(tokenizer_class="AlbertTokenizer", keep_accents=True, do_lower_case=True), {}
    yield "t5", "llama", pieces(("<pad>", "</s>", "<unk>"), "<unk>"), dict(tokenizer_class="T5Tokenizer", extra_ids=2), {}
    yield "gpt2", "llama", byte_pairs(("<|endoftext|>",)), dict(tokenizer_class="GPT2Tokenizer", add_prefix_space=True,
                                                                truncation_side="left"), {}
    yield "llama", "llama", llama_pairs(), dict(tokenizer_class="LlamaTokenizer", legacy=True, add_bos_token=True, image_token="[USER]"), {}
    yield "mistral", "mistral", llama_pairs(), dict(tokenizer_class="LlamaTokenizer", add_eos_token=True, legacy=True), {}
    qwen = {"520": token("<|endoftext|>"), "521": token("<|im_start|>"), "522": token("[USER]", special=False)}
    yield "qwen2", "qwen2", byte_pairs(()), dict(tokenizer_class="Qwen2Tokenizer", added_tokens_decoder=qwen,
                                                 additional_special_tokens=["<|im_start|>"], model_max_length=1e30), {}
    modern = word_pieces()
    modern.add_tokens([AddedToken("hello", single_word=True)])
    yield "modernbert", "bert", modern, dict(BERT, tokenizer_class="PreTrainedTokenizerFast", model_input_names=["input_ids", "token_type_ids"],
                                             added_tokens_decoder={"900": marked}), {}


def write(out, name, model, tokenizer, settings, files):
    folder = os.path.join(out, name)
    os.makedirs(folder)
    tokenizer.save(os.path.join(folder, "tokenizer.json"), pretty=False)
    write_json(folder, "config.json", dict(model_type=model, type_vocab_size=2))
    if settings is not None:
        write_json(folder, "tokenizer_config.json", settings)
    for file, content in files.items():
        if file == "vocab.txt":
            words = sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
            with open(os.path.join(folder, file), "w") as lines:
                lines.writelines(word + "\n" for word, _ in words)
            os.remove(os.path.join(folder, "tokenizer.json"))
        else:
            write_json(folder, file, content)
    write_json(folder, "expected.json", expected(folder))


def expected(folder):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)

    def encode(text, pair=None, **options):
        encoded = tokenizer(text, pair, **options)
        segments = encoded.get("token_type_ids") or [0] * len(encoded["input_ids"])
        return dict(ids=encoded["input_ids"], segments=segments)

    cases = [dict(text=text, **encode(text)) for text in TEXTS]
    cases += [dict(text=TEXTS[a], pair=TEXTS[b], **encode(TEXTS[a], TEXTS[b])) for a, b in PAIRS]
    cut = dict(truncation=True, max_length=11)
    cases += [dict(text=text, most=11, **encode(text, **cut)) for text in TEXTS]
    cases += [dict(text=TEXTS[a], pair=TEXTS[b], most=11, **encode(TEXTS[a], TEXTS[b], **cut)) for a, b in PAIRS]
    limit = tokenizer.model_max_length
    return dict(tokenizer_class=type(tokenizer).__name__, max_tokens=limit if limit < 1e9 else None, cases=cases)


def write_json(folder, file, value):
    with open(os.path.join(folder, file), "w") as target:
        json.dump(value, target, ensure_ascii=False)
        target.write("\n")


def main(out):
    transformers.logging.set_verbosity_error()
    shutil.rmtree(out, ignore_errors=True)
    for family in families():
        write(out, *family)
    print(f"{len(os.listdir(out))} tokenizers; transformers {transformers.__version__}")


if __name__ == "__main__":
    main(sys.argv[1])
