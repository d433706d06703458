"""Writes the golden numbers: small random models of every architecture, task and PEFT kind, computed by PyTorch in float64.

usage: make.py OUT_DIR      (needs: torch transformers peft safetensors; `make golden` runs it, the tests only read)

OUT_DIR/VARIANT/checkpoint/             what `skiff-pack build` takes: a base model without a task's head
OUT_DIR/VARIANT/CASE/case.json          task, labels, PEFT settings, type of the frozen tensors, layer masks
                     weights.safetensors    values of the trainable tensors, with PEFT's names (float32)
                     batch.safetensors      input_ids, attention_mask, token_type_ids (with segments only), labels
                     expected.safetensors   for each mask MASK/loss, MASK/logits, MASK/grad.NAME (float64, rounded to float32);
                                            logits of token tasks: the real tokens of all examples one after another
                     adapter/               LoRA only: the same weights as PEFT's save_pretrained writes them
OUT_DIR/training.safetensors            the losses of 50 AdamW steps of bert/sequence-lora, and the weights after them
"""
import contextlib, copy, json, math, os, shutil, sys, warnings, zlib
from unittest import mock
import peft, torch, transformers
from safetensors.torch import save_file
from torch import nn

# The models ------------------------------------------------------------------------------------------------------------------

BERT = dict(num_hidden_layers=3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
ROBERTA = dict(BERT, pad_token_id=1, bos_token_id=0, eos_token_id=2, type_vocab_size=1, max_position_embeddings=18)
DEBERTA = dict(BERT, relative_attention=True, max_relative_positions=-1, position_biased_input=False, type_vocab_size=0,
               pos_att_type=["p2c", "c2p"], norm_rel_ebd="layer_norm", share_att_key=True, layer_norm_eps=1e-7)
DECODER = dict(num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, pad_token_id=0, use_cache=False)
LLAMA3 = dict(rope_type="llama3", rope_theta=10.0, factor=8.0, low_freq_factor=2.0, high_freq_factor=6.0,
              original_max_position_embeddings=48)    # of three frequencies one stays, one is blended, one is divided
YARN = dict(rope_type="yarn", rope_theta=100.0, factor=4.0, original_max_position_embeddings=64)    # the ramp: 0, 1/2, 1

VARIANTS = {
    # name: (class of the configuration, its options, how the checkpoint is stored)
    "bert": (transformers.BertConfig, dict(BERT, hidden_size=24, num_attention_heads=3, intermediate_size=43, vocab_size=53,
             max_position_embeddings=32), dict()),
    "bert-odd": (transformers.BertConfig, dict(BERT, num_hidden_layers=2, hidden_size=36, num_attention_heads=4,
                 intermediate_size=61, vocab_size=37, hidden_act="gelu_new", max_position_embeddings=16),
                 dict(prefix="bert.", legacy_norms=True)),
    "roberta": (transformers.RobertaConfig, dict(ROBERTA, hidden_size=24, num_attention_heads=4, intermediate_size=39,
                vocab_size=41), dict(prefix="roberta.", pooler=False, shards=2)),
    "xlm-roberta": (transformers.XLMRobertaConfig, dict(ROBERTA, hidden_size=28, num_attention_heads=4, intermediate_size=33,
                    vocab_size=61), dict(prefix="roberta.", pooler=False)),
    # A distance of 14 is the last that the 8 buckets can tell apart: the argument of the logarithm's ceiling is exactly 3.
    "deberta-v3": (transformers.DebertaV2Config, dict(DEBERTA, hidden_size=24, num_attention_heads=3, intermediate_size=45,
                   vocab_size=47, position_buckets=8, max_position_embeddings=15), dict(prefix="deberta.")),
    "deberta-v2-conv": (transformers.DebertaV2Config, dict(DEBERTA, hidden_size=28, num_attention_heads=4, intermediate_size=37,
                        vocab_size=43, position_buckets=4, max_position_embeddings=16, conv_kernel_size=3, conv_act="gelu",
                        attention_head_size=7), dict(prefix="deberta.")),
    "deberta-v2-plain": (transformers.DebertaV2Config, dict(BERT, hidden_size=30, num_attention_heads=3, intermediate_size=41,
                         vocab_size=39, embedding_size=18, relative_attention=True, max_relative_positions=6,
                         max_position_embeddings=16, position_buckets=-1, pos_att_type=["c2p"], share_att_key=False,
                         position_biased_input=True, type_vocab_size=2), dict(prefix="deberta.")),
    # No attention by distance. pos_att_type still affects the scale of the scores.
    "deberta-v2-absolute": (transformers.DebertaV2Config, dict(DEBERTA, relative_attention=False, position_biased_input=True,
                            hidden_size=24, num_attention_heads=3, intermediate_size=35, vocab_size=37,
                            max_position_embeddings=16), dict(prefix="deberta.")),
    "llama": (transformers.LlamaConfig, dict(DECODER, hidden_size=24, intermediate_size=51, vocab_size=59,
              rope_parameters=LLAMA3), dict(old_rope=True)),
    "llama-plain": (transformers.LlamaConfig, dict(DECODER, hidden_size=32, intermediate_size=35, vocab_size=37,
                    tie_word_embeddings=True, attention_bias=True, mlp_bias=True,
                    rope_parameters=dict(type="linear", rope_theta=10000.0, factor=2.0)),
                    dict(old_rope=True, dtype=torch.bfloat16)),
    "llama-yarn": (transformers.LlamaConfig, dict(DECODER, hidden_size=24, intermediate_size=45, vocab_size=43,
                   rope_parameters=YARN, max_position_embeddings=256), dict()),
    "mistral": (transformers.MistralConfig, dict(DECODER, hidden_size=24, intermediate_size=47, vocab_size=41, head_dim=10,
                sliding_window=4), dict()),
    "qwen2": (transformers.Qwen2Config, dict(DECODER, hidden_size=24, intermediate_size=49, vocab_size=45,
              use_sliding_window=True, sliding_window=4, max_window_layers=1, tie_word_embeddings=True), dict()),
    "qwen3": (transformers.Qwen3Config, dict(DECODER, hidden_size=24, intermediate_size=37, vocab_size=47, head_dim=8),
              dict(old_rope=True, dtype=torch.float16)),
}

# The cases -------------------------------------------------------------------------------------------------------------------

TASKS = {
    # name: (class of the model, PEFT's name of the task, labels)
    "sequence-classification": (transformers.AutoModelForSequenceClassification, "SEQ_CLS", 4),
    "regression": (transformers.AutoModelForSequenceClassification, "SEQ_CLS", 3),
    "token-classification": (transformers.AutoModelForTokenClassification, "TOKEN_CLS", 5),
    "causal-lm": (transformers.AutoModelForCausalLM, "CAUSAL_LM", 0),
}
DECODERS = ("llama", "llama-plain", "llama-yarn", "mistral", "qwen2", "qwen3")
EVERY_TASK_AND_KIND = ("bert", "roberta", "deberta-v3", "llama", "mistral", "qwen2")
WITHOUT_BIASES = ("llama", "mistral")
LABELS = {"bert-odd": 7, "xlm-roberta": 2}    # other numbers of labels than the task's
HOUSLBY, BITFIT = dict(kind="houlsby", width=5), dict(kind="bitfit")


def lora(*targets, **settings):
    return dict(dict(kind="lora", rank=4, alpha=8.0, targets=list(targets), rank_pattern={}, alpha_pattern={}, rslora=False,
                     freeze_a=False), **settings)


def targets(variant):
    return ["q_proj", "v_proj"] if variant in DECODERS else (
        ["query_proj", "value_proj"] if variant.startswith("deberta") else ["query", "value"])


EVERY_BERT = lora("query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense", rank=3, alpha=6.0,
                  rslora=True, rank_pattern={"layer.0.attention.self.query": 5, "layer.2.output.dense": 2, "key": 1},
                  alpha_pattern={"layer.1.attention.self.query": 3.0, "value": 12.0})
EVERY_LLAMA = lora("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", rank=3, alpha=5.0,
                   rank_pattern={"layers.1.self_attn.q_proj": 6, "down_proj": 2})
FURTHER = {
    # variant: (name, task, PEFT, type of the frozen tensors)
    "bert": [("sequence-lora-every", "sequence-classification", EVERY_BERT, "f32"),
             ("sequence-lora-ffa", "sequence-classification", lora("query", "value", freeze_a=True), "f32")],
    "deberta-v3": [("sequence-lora-key", "sequence-classification", lora("query_proj", "key_proj", "value_proj"), "f32")],
    "deberta-v2-conv": [("sequence-bitfit", "sequence-classification", BITFIT, "f32")],
    "deberta-v2-plain": [("sequence-lora-position", "sequence-classification", lora("query_proj", "pos_key_proj"), "f32")],
    "llama": [("causal-lora-every", "causal-lm", EVERY_LLAMA, "f32")],
    "llama-plain": [("sequence-bitfit", "sequence-classification", BITFIT, "f32")],
}


def cases(variant):
    """Yields (name, task, PEFT, type of the frozen tensors)."""
    tasks = [task for task in TASKS if variant in DECODERS or task != "causal-lm"]
    kinds = dict(lora=lora(*targets(variant)), houlsby=HOUSLBY, bitfit=BITFIT)
    if variant in WITHOUT_BIASES:
        del kinds["bitfit"]
    if variant not in EVERY_TASK_AND_KIND:
        tasks, kinds = [task for task in tasks if task.startswith(("sequence", "causal"))], dict(lora=kinds["lora"])
    for task in tasks:
        for kind, settings in kinds.items():
            yield f"{task.split('-')[0]}-{kind}", task, settings, "f32"
    if variant in ("bert", "deberta-v3", "llama"):
        for frozen in ("int8", "f16"):
            yield f"sequence-lora-{frozen}", "sequence-classification", kinds["lora"], frozen
    yield from FURTHER.get(variant, [])


def masks(layers):
    return dict(all=list(range(layers)), one=[1], second=list(range(0, layers, 2)))


# Checkpoints -----------------------------------------------------------------------------------------------------------------

def write_checkpoint(folder, variant):
    """A random base model, stored as its publishers store it."""
    kind, options, stored = VARIANTS[variant]
    seed(variant)
    if variant in DECODERS:
        model = transformers.AutoModelForCausalLM.from_config(kind(**options))
    else:
        pooler = {} if variant.startswith("deberta") else dict(add_pooling_layer=stored.get("pooler", True))
        model = transformers.AutoModel.from_config(kind(**options), **pooler)
    # New initial values are small (standard deviation 0.02, norms exactly one). Larger ones make every part matter.
    for name, parameter in model.named_parameters():
        spread = 0.3 if parameter.ndim > 1 else 0.1
        parameter.data = torch.randn_like(parameter) * spread + (1.0 if "norm.weight" in name.lower() else 0.0)
    model.to(stored.get("dtype", torch.float32))
    tensors = {stored.get("prefix", "") + name: parameter for name, parameter in model.named_parameters()}
    if stored.get("legacy_norms"):
        tensors = {name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
                   for name, tensor in tensors.items()}
    os.makedirs(folder)
    save_shards(tensors, folder, stored.get("shards", 1))
    model.config.architectures, model.config.dtype = [type(model).__name__], model.dtype
    model.config.save_pretrained(folder)
    if stored.get("old_rope"):
        write_old_rope(os.path.join(folder, "config.json"))
    write_json(os.path.join(folder, "tokenizer.json"), dict(
        version="1.0", truncation=None, padding=None, added_tokens=[], normalizer=None, pre_tokenizer=dict(type="Whitespace"),
        post_processor=None, decoder=None, model=dict(type="WordLevel", vocab={"[UNK]": 0}, unk_token="[UNK]")))
    write_json(os.path.join(folder, "tokenizer_config.json"), dict(tokenizer_class="PreTrainedTokenizerFast"))


def save_shards(tensors, folder, count):
    if count == 1:
        return save(tensors, os.path.join(folder, "model.safetensors"))
    names, size = list(tensors), math.ceil(len(tensors) / count)
    files = {name: f"model-{at // size + 1:05}-of-{count:05}.safetensors" for at, name in enumerate(names)}
    for file in sorted(set(files.values())):
        save({name: tensors[name] for name in names if files[name] == file}, os.path.join(folder, file))
    total = sum(tensor.nbytes for tensor in tensors.values())
    write_json(os.path.join(folder, "model.safetensors.index.json"), dict(metadata=dict(total_size=total), weight_map=files))


def write_old_rope(path):
    """Rewrites config.json to the keys of transformers 4, which most published checkpoints have."""
    config = read_json(path)
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    if "type" in rope:    # older still
        del rope["rope_type"]
    config["rope_scaling"] = None if rope == dict(rope_type="default") else rope
    config["torch_dtype"] = config.pop("dtype")
    config.pop("layer_types", None)
    if config["head_dim"] * config["num_attention_heads"] == config["hidden_size"]:
        del config["head_dim"]
    write_json(path, config)


# One case --------------------------------------------------------------------------------------------------------------------

def load(folder, task, labels):
    """The task's model with the checkpoint's weights, and the names of those that it lacks: the head's."""
    options = dict(num_labels=labels) if labels else {}
    if task == "regression":
        options["problem_type"] = "regression"
    model, report = TASKS[task][0].from_pretrained(folder, dtype=torch.float32, attn_implementation="eager",
                                                   output_loading_info=True, **options)
    assert not report["mismatched_keys"], report
    assert not set(report["unexpected_keys"]) - {"lm_head.weight", "pooler.dense.weight", "pooler.dense.bias",
                                                 "bert.pooler.dense.weight", "bert.pooler.dense.bias"}, report
    return model, sorted(report["missing_keys"])


def adapt(model, settings, head, task):
    """Makes the PEFT kind's tensors and the head the trainable ones; returns PEFT's wrapper for LoRA.

    PEFT trains `classifier` and `score` unasked, DeBERTa's pooler only when told to.
    """
    if settings["kind"] == "lora":
        wrapper = peft.get_peft_model(model, peft.LoraConfig(
            task_type=TASKS[task][1], r=settings["rank"], lora_alpha=settings["alpha"], target_modules=settings["targets"],
            rank_pattern=dict(settings["rank_pattern"]), alpha_pattern=dict(settings["alpha_pattern"]),
            use_rslora=settings["rslora"], modules_to_save=["pooler"] if "pooler.dense.weight" in head else None))
        randomise(model)
        for name, parameter in model.named_parameters():
            if settings["freeze_a"] and "lora_A" in name:
                parameter.requires_grad = False
        return wrapper
    in_block = lambda name: ".layer." in name or ".layers." in name or ".conv." in name
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name in head or (settings["kind"] == "bitfit" and in_block(name) and name.endswith("bias"))
    if settings["kind"] == "houlsby":
        for name, linear in list(model.named_modules()):
            if in_block(name) and name.endswith(("output.dense", "o_proj", "down_proj")):
                linear.adapter_down = nn.Linear(linear.out_features, settings["width"])
                linear.adapter_up = nn.Linear(settings["width"], linear.out_features)
                linear.register_forward_hook(add_houlsby)
    randomise(model)


def add_houlsby(linear, _, y):
    return y + linear.adapter_up(nn.functional.gelu(linear.adapter_down(y)))


def randomise(model):
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn_like(parameter) * 0.2


def round_frozen(model, frozen):
    """Replaces frozen tensors by what a pack holds: f16, or int8 with one scale for each index of the first axis."""
    for parameter in model.parameters():
        if frozen == "f32" or parameter.requires_grad or parameter.ndim < 2:
            continue
        if frozen == "f16":
            parameter.data = parameter.data.half().float()
            continue
        rows = parameter.data.flatten(1)
        scale = rows.abs().amax(1, keepdim=True) / 127
        scale[scale == 0] = 1
        parameter.data = ((rows / scale).round().clamp(-127, 127) * scale).view_as(parameter)


def trainable(model):
    name_of = lambda name: "base_model.model." + name.replace(".default", "").replace("modules_to_save.", "")
    return {name_of(name): parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def draw_batch(config, variant, task, labels):
    """Examples of different length, padded on the right; no real token is the padding token."""
    count, longest = (3, 15) if variant.startswith("deberta") else (4, 13)
    lengths = torch.cat([torch.tensor([longest]), torch.randperm(longest - 1)[:count - 1] + 1])
    lengths = lengths[torch.randperm(count)]
    mask = (torch.arange(longest)[None, :] < lengths[:, None]).long()
    ids = torch.randint(0, config.vocab_size - 1, (count, longest))
    ids = torch.where(mask == 1, ids + (ids >= config.pad_token_id).long(), config.pad_token_id)
    batch = dict(input_ids=ids, attention_mask=mask)
    if getattr(config, "type_vocab_size", 0) > 1:
        batch["token_type_ids"] = torch.randint(0, config.type_vocab_size, (count, longest)) * mask
    if task == "sequence-classification":
        batch["labels"] = torch.randint(0, labels, (count,))
    elif task == "regression":
        batch["labels"] = torch.randn(count, labels)
    elif task == "token-classification":
        counted = (mask == 1) & (torch.rand(count, longest) < 0.8)
        batch["labels"] = torch.where(counted, torch.randint(0, labels, (count, longest)), -100)
    else:
        prompt = torch.arange(longest)[None, :] < (lengths[:, None] + 1) // 3
        batch["labels"] = torch.where((mask == 1) & ~prompt, ids, -100)
    return batch


class Skipped(nn.Module):
    """In the place of a layer that is left out, so that every other layer keeps its number and its kind of attention."""

    def __init__(self, gives_pair):
        super().__init__()
        self.gives_pair = gives_pair

    def forward(self, hidden, *_, **__):
        return (hidden, None) if self.gives_pair else hidden


@contextlib.contextmanager
def only(model, active):
    """The model with the active layers alone. DeBERTa's convolution belongs to layer 0."""
    base = getattr(model, model.base_model_prefix)
    stack, name = (base.encoder, "layer") if hasattr(base, "encoder") else (base, "layers")
    every, convolution = getattr(stack, name), getattr(stack, "conv", None)
    skipped = Skipped(gives_pair=model.config.model_type == "deberta-v2")
    setattr(stack, name, nn.ModuleList([layer if at in active else skipped for at, layer in enumerate(every)]))
    if convolution is not None and 0 not in active:
        stack.conv = None
    yield
    setattr(stack, name, every)
    if convolution is not None:
        stack.conv = convolution


@contextlib.contextmanager
def exact():
    """transformers computes norms, softmax and losses of some models in float32 whatever their type; here in float64."""
    with mock.patch.multiple(torch, float32=torch.float64, float=torch.float64), \
            mock.patch.object(torch.Tensor, "float", torch.Tensor.double):
        yield


def run(model, batch, active):
    """Loss and logits, with the gradients in the parameters; logits of token tasks are those of the real tokens: [T, N]."""
    model.zero_grad(set_to_none=True)
    batch = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in batch.items()}
    with exact(), only(model, active):
        out = model(**batch)
        out.loss.backward()
    return out.loss, out.logits[batch["attention_mask"].bool()] if out.logits.ndim == 3 else out.logits


def assert_padding_is_unseen(model, batch, logits):
    """Each example alone, without padding, has the logits that it has among the others."""
    alone, labels = [], batch["labels"]
    for at, length in enumerate(batch["attention_mask"].sum(1)):
        one = {name: tensor[at:at + 1, :length] for name, tensor in batch.items() if name != "labels"}
        with exact(), torch.no_grad():
            alone.append(model(**one).logits.flatten(0, -2))
    assert torch.allclose(torch.cat(alone), logits, rtol=1e-9, atol=1e-9)


def write_case(out, variant, case, task, settings, frozen):
    """Writes a case's folder; returns its model, batch and number of layers."""
    folder = os.path.join(out, variant, case)
    os.makedirs(folder)
    seed(variant, case)
    labels = TASKS[task][2] and LABELS.get(variant, 1 if (variant, case) == ("bert", "regression-lora") else TASKS[task][2])
    model, head = load(os.path.join(out, variant, "checkpoint"), task, labels)
    wrapper = adapt(model, settings, head, task)
    round_frozen(model, frozen)
    batch = draw_batch(model.config, variant, task, labels)
    layers = model.config.num_hidden_layers
    write_json(os.path.join(folder, "case.json"), dict(task=task, labels=labels, peft=settings, frozen=frozen,
                                                       masks=masks(layers)))
    save(trainable(model), os.path.join(folder, "weights.safetensors"))
    save(batch, os.path.join(folder, "batch.safetensors"))
    if wrapper is not None:
        write_adapter(wrapper, os.path.join(folder, "adapter"))
    model, expected = copy.deepcopy(model).double(), {}
    for mask, active in masks(layers).items():
        loss, logits = run(model, batch, active)
        if mask == "all":
            assert_padding_is_unseen(model, batch, logits)
        expected |= {f"{mask}/loss": loss, f"{mask}/logits": logits}
        expected |= {f"{mask}/grad.{name}": value.grad for name, value in trainable(model).items() if value.grad is not None}
    save({name: tensor.float() for name, tensor in expected.items()}, os.path.join(folder, "expected.safetensors"))
    return model, batch, layers


def write_adapter(wrapper, folder):
    wrapper.save_pretrained(folder, save_embedding_layers=False)
    os.remove(os.path.join(folder, "README.md"))
    path = os.path.join(folder, "adapter_config.json")
    config = dict(read_json(path), base_model_name_or_path=None)    # would be a folder of this machine
    write_json(path, dict(config, target_modules=sorted(config["target_modules"])))    # a set: written in any order


def write_training(out, model, batch, layers):
    """50 AdamW steps in float64, PyTorch's defaults but for the rate, cycling through three masks."""
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1e-2)
    cycle, losses = [list(range(layers)), [0, layers - 1], [1]], []
    for step in range(50):
        losses.append(run(model, batch, cycle[step % 3])[0].detach())
        optimizer.step()
    save(dict(losses=torch.stack(losses), **trainable(model)), os.path.join(out, "training.safetensors"))


# Files -----------------------------------------------------------------------------------------------------------------------

def seed(*names):
    torch.manual_seed(zlib.crc32("/".join(names).encode()))


def save(tensors, path):
    tensors = {name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}
    save_file(tensors, path, metadata=dict(format="pt"))


def read_json(path):
    with open(path) as file:
        return json.load(file)


def write_json(path, value):
    with open(path, "w") as file:
        json.dump(value, file, indent=1)
        file.write("\n")


def size(folder):
    return sum(os.path.getsize(os.path.join(at, name)) for at, _, names in os.walk(folder) for name in names)


def main(out):
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    for variant in VARIANTS:
        folder = os.path.join(out, variant)
        shutil.rmtree(folder, ignore_errors=True)
        write_checkpoint(os.path.join(folder, "checkpoint"), variant)
        made = {case: write_case(out, variant, case, *rest) for case, *rest in cases(variant)}
        if variant == "bert":
            write_training(out, *made["sequence-lora"])
        print(f"{variant}: {size(folder) / 1e3:.0f} kB, {', '.join(made)}")
    print(f"{size(out) / 1e6:.2f} MB in all; torch {torch.__version__}, transformers {transformers.__version__}, "
          f"peft {peft.__version__}")


if __name__ == "__main__":
    main(sys.argv[1])
