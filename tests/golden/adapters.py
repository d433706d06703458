"""Writes a table of adapters that PEFT makes, with the logits that it gives after loading them again.

usage: adapters.py OUT_DIR            writes the table (needs what make.py needs, and its checkpoints in OUT_DIR)
       adapters.py OUT_DIR SKIFF_PACK loads what `skiff-pack export` makes of each adapter with PEFT: the logits stay the same

OUT_DIR/adapters/NAME/                  the adapter as save_pretrained writes it
OUT_DIR/adapters/table.json             for each NAME: checkpoint, task, labels; for one that Skiff refuses, a word of the error
OUT_DIR/adapters/batch.VARIANT.safetensors
OUT_DIR/adapters/expected.safetensors   the logits of each adapter that Skiff loads, [B, C] or those of the real tokens
"""
import os, shutil, subprocess, sys, tempfile, warnings
import peft, torch, transformers
from safetensors.torch import load_file

sys.dont_write_bytecode = True    # the folder holds data; leave nothing beside it
import make

QUERY_VALUE = dict(target_modules=["query", "value"])
Q_V = dict(target_modules=["q_proj", "v_proj"])
LOADED = {
    # name: (variant, task, settings of LoRA)
    "regex": ("bert", dict(target_modules=r".*\.layer\.[02]\.attention\.self\.(query|key)")),
    "regex-lookahead": ("bert", dict(target_modules=r"^(?!.*layer\.1\.).*\.(query|value)$")),
    "all-linear": ("bert", dict(target_modules="all-linear")),
    "all-linear-but-names": ("bert", dict(target_modules="all-linear", exclude_modules=["output.dense", "key"])),
    "list-but-regex": ("bert", dict(target_modules=["query", "dense"], exclude_modules=r".*(pooler|layer\.0).*")),
    "one-layer": ("bert", dict(QUERY_VALUE, layers_to_transform=1)),
    "layers-by-pattern": ("bert", dict(QUERY_VALUE, layers_to_transform=[0, 2], layers_pattern="layer")),
    "layer-and-whole-name": ("bert", dict(target_modules=["query", "bert.encoder.layer.0.output.dense"],
                                          layers_to_transform=[2])),
    "pattern-regexes": ("bert", dict(QUERY_VALUE, rank_pattern={r"layer\.[01]\..*query": 3, "value": 1},
                                     alpha_pattern={r".*layer\.2\..*": 7, "self.value": 3})),
    # PEFT sorts the keys when it saves them, so that another order would not load again.
    "patterns-in-order": ("bert", dict(QUERY_VALUE, rank_pattern={"attention.self.query": 1, "layer.1.attention.self.query": 3})),
    "pattern-without-layer": ("bert", dict(QUERY_VALUE, rank_pattern={"nothing": 3})),
    "rslora": ("bert", dict(QUERY_VALUE, use_rslora=True, rank_pattern={"query": 4})),
    "default-targets": ("bert", dict()),
    "name-of-another-model": ("bert", dict(target_modules=["query", "q_proj"])),
    "fan-in-fan-out": ("bert", dict(QUERY_VALUE, fan_in_fan_out=True)),
    "gaussian": ("bert", dict(QUERY_VALUE, init_lora_weights="gaussian")),
    "orthogonal": ("bert", dict(QUERY_VALUE, init_lora_weights="orthogonal")),
    "trained-pooler": ("bert", dict(QUERY_VALUE, modules_to_save=["pooler"])),
    "dense-but-trained-pooler": ("bert", dict(target_modules=["dense"], modules_to_save=["pooler"])),
    "roberta-all-linear": ("roberta", dict(target_modules="all-linear")),
    "llama-regex": ("llama", dict(target_modules=r"(?:.*?(?:self_attn|mlp).*?(?:q_proj|down_proj).*?)")),
    "llama-layers": ("llama", dict(Q_V, layers_to_transform=[1, 2], layers_pattern=["layers"])),
    "llama-all-linear": ("llama", dict(target_modules="all-linear", exclude_modules=r".*\.[kv]_proj")),
}
REFUSED = {
    # name: (variant, settings of LoRA or another method, a word of the error)
    "dora": ("bert", dict(QUERY_VALUE, use_dora=True), "use_dora"),
    "bias-all": ("bert", dict(QUERY_VALUE, bias="all"), "bias"),
    "bias-of-lora-only": ("bert", dict(QUERY_VALUE, bias="lora_only"), "bias"),
    "lora-bias": ("bert", dict(QUERY_VALUE, lora_bias=True), "lora_bias"),
    "pissa": ("bert", dict(QUERY_VALUE, init_lora_weights="pissa"), "init_lora_weights"),
    "olora": ("bert", dict(QUERY_VALUE, init_lora_weights="olora"), "init_lora_weights"),
    "embedding": ("bert", dict(target_modules=["query", "word_embeddings"]), "lora_embedding"),
    "saved-embedding": ("bert", dict(QUERY_VALUE, modules_to_save=["word_embeddings"]), "word_embeddings"),
    "saved-layer": ("bert", dict(QUERY_VALUE, modules_to_save=["output.dense"]), "output.dense"),
    "tokens": ("bert", dict(QUERY_VALUE, trainable_token_indices=dict(word_embeddings=[3, 5])), "trainable_token_indices"),
    "llama-head": ("llama", dict(target_modules=["q_proj", "lm_head"]), "lm_head"),
    "llama-saved-head": ("llama", dict(Q_V, modules_to_save=["lm_head"]), "lm_head"),
    "llama-replicated": ("llama", dict(Q_V, layer_replication=[[0, 2], [1, 3]]), "layer_replication"),
    "llama-alora": ("llama", dict(Q_V, alora_invocation_tokens=[5, 6]), "alora_invocation_tokens"),
    "ia3": ("bert", peft.IA3Config(task_type="SEQ_CLS", target_modules=["key", "value"], feedforward_modules=[]), "IA3"),
    "prompt": ("bert", peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=4), "PROMPT_TUNING"),
}


def task_of(variant):
    return "causal-lm" if variant in make.DECODERS else "sequence-classification"


def base(out, variant):
    task = task_of(variant)
    return make.load(os.path.join(out, variant, "checkpoint"), task, make.TASKS[task][2])


def write_adapter(out, name, variant, settings):
    make.seed("adapters", name)
    if isinstance(settings, dict):
        settings = peft.LoraConfig(task_type=make.TASKS[task_of(variant)][1], r=2, lora_alpha=6, **settings)
    wrapper = peft.get_peft_model(base(out, variant)[0], settings)
    make.randomise(wrapper)
    folder = os.path.join(out, "adapters", name)
    wrapper.save_pretrained(folder, save_embedding_layers=False)
    os.remove(os.path.join(folder, "README.md"))
    path = os.path.join(folder, "adapter_config.json")
    # PEFT writes a set in any order, and names a local folder as the base.
    config = {key: sorted(value) if isinstance(value, list) and key.endswith("modules") else value
              for key, value in make.read_json(path).items()}
    make.write_json(path, dict(config, base_model_name_or_path=None))
    return folder


def logits(model, batch):
    with make.exact(), torch.no_grad():
        found = model.eval().double()(**{name: tensor for name, tensor in batch.items() if name != "labels"}).logits
    return found[batch["attention_mask"].bool()] if found.ndim == 3 else found


def check(out, program):
    expected = load_file(os.path.join(out, "adapters", "expected.safetensors"))
    worst = 0.0
    for name, row in make.read_json(os.path.join(out, "adapters", "table.json")).items():
        if row["refused"]:
            continue
        checkpoint = os.path.join(out, row["variant"], "checkpoint")
        with tempfile.TemporaryDirectory() as folder:
            pack, exported = os.path.join(folder, "pack"), os.path.join(folder, "adapter")
            labels = ["--labels", str(row["labels"])] if row["labels"] else []
            subprocess.run([program, "build", "--checkpoint", checkpoint, "--task", row["task"], *labels, "--out", pack,
                            "--adapter", os.path.join(out, "adapters", name)], check=True, capture_output=True)
            subprocess.run([program, "export", "--pack", pack, "--out", exported], check=True, capture_output=True)
            loaded = peft.PeftModel.from_pretrained(base(out, row["variant"])[0], exported)
        batch = load_file(os.path.join(out, "adapters", f"batch.{row['variant']}.safetensors"))
        wanted = expected[name].double()
        error = ((logits(loaded, batch) - wanted).abs().max() / wanted.abs().max()).item()
        if not error <= 1e-5:
            sys.exit(f"{name}: logits of the exported adapter differ by {error:.1e} of the largest")
        worst = max(worst, error)
    print(f"adapters: exported again, logits differ by at most {worst:.1e} of the largest")


def write(out):
    shutil.rmtree(os.path.join(out, "adapters"), ignore_errors=True)
    os.makedirs(os.path.join(out, "adapters"))
    table, batches, expected = {}, {}, {}
    for variant in sorted({variant for variant, *_ in [*LOADED.values(), *REFUSED.values()]}):
        make.seed("adapters", variant)
        task = task_of(variant)
        batches[variant] = make.draw_batch(base(out, variant)[0].config, variant, task, make.TASKS[task][2])
        make.save(batches[variant], os.path.join(out, "adapters", f"batch.{variant}.safetensors"))
    for name, (variant, settings) in LOADED.items():
        task = task_of(variant)
        folder = write_adapter(out, name, variant, settings)
        loaded = peft.PeftModel.from_pretrained(base(out, variant)[0], folder)
        expected[name] = logits(loaded, batches[variant]).float()
        table[name] = dict(variant=variant, task=task, labels=make.TASKS[task][2], refused=None)
    for name, (variant, settings, word) in REFUSED.items():
        task = task_of(variant)
        write_adapter(out, name, variant, settings)
        table[name] = dict(variant=variant, task=task, labels=make.TASKS[task][2], refused=word)
    make.save(expected, os.path.join(out, "adapters", "expected.safetensors"))
    make.write_json(os.path.join(out, "adapters", "table.json"), table)
    print(f"adapters: {make.size(os.path.join(out, 'adapters')) / 1e3:.0f} kB, {', '.join(table)}")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    check(*sys.argv[1:]) if len(sys.argv) > 2 else write(sys.argv[1])
