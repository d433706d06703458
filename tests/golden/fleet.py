"""A real fleet's result, loaded by the libraries of others: a broker, a coordinator and two agents tune a tiny BERT, and what
they export must give the accuracy that the devices counted, and the same logits in every form.

usage: fleet.py BIN_DIR OUT_DIR     (BIN_DIR has skiff, skiff-agent, skiff-worker, skiff-pack; needs Mosquitto, and
                                     SKIFF_ONNXRUNTIME; `make golden` runs it, the tests read what it writes)

OUT_DIR/fleet/checkpoint/       the base model, without a head, and its tokenizer
              adapter/          `skiff run export`
              own-oak/          `skiff-agent export`: an adapter with a device's own layers
              batch.safetensors input_ids, attention_mask, token_type_ids
              expected.safetensors    the logits of these and of the merged checkpoint: float64 in float32
"""
import json, os, pathlib, shutil, socket, subprocess, sys, tempfile, time, warnings
import huggingface_hub, peft, torch, transformers
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors

sys.dont_write_bytecode = True    # the folder holds data; leave nothing beside it
import make

WORDS = dict(warm="heat warm oven fire hot radiator".split(), light="lamp light bulb bright dark shade".split(),
             sound="music song loud quiet radio volume".split())
OTHERS = "please turn the in my room a bit now on off kitchen hall up down more less and it".split()
LABELS = list(WORDS)


def write_checkpoint(folder):
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *OTHERS, *sum(WORDS.values(), [])]
    tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"])
    make.seed("fleet", "checkpoint")
    model = transformers.BertModel(transformers.BertConfig(**dict(
        make.BERT, hidden_size=32, num_attention_heads=4, intermediate_size=48, vocab_size=len(vocabulary),
        max_position_embeddings=32)))
    for parameter in model.parameters():
        parameter.data += torch.randn_like(parameter) * (0.2 if parameter.ndim > 1 else 0.05)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    pathlib.Path(folder, "README.md").write_text("---\nlicense: apache-2.0\n---\n# A tiny BERT of random numbers\n")


def draw_examples(count):
    """Sentences of one to three words of their label among others."""
    pick = lambda words: words[torch.randint(len(words), ()).item()]
    for at in range(count):
        label = LABELS[at % len(LABELS)]
        words = [pick(OTHERS) for _ in range(torch.randint(2, 6, ()).item())]
        for _ in range(torch.randint(1, 4, ()).item()):
            words.insert(torch.randint(len(words) + 1, ()).item(), pick(WORDS[label]))
        yield dict(label=label, text=" ".join(words))


class Fleet:
    """Programs in a temporary folder; ends what it started."""

    def __init__(self, programs, folder):
        self.programs, self.folder, self.started = programs, folder, []
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.broker = f"mqtt://127.0.0.1:{probe.getsockname()[1]}"

    def call(self, program, *arguments, **more):
        done = subprocess.run([self.programs / program, *map(str, arguments)], cwd=self.folder, capture_output=True, text=True,
                              **more)
        if done.returncode:
            sys.exit(f"{program} {' '.join(map(str, arguments))}: {done.stdout}{done.stderr}")
        return done.stdout

    def start(self, name, *command):
        with open(self.folder / f"{name}.log", "w") as log:
            self.started.append(subprocess.Popen(list(map(str, command)), cwd=self.folder, stdout=log, stderr=log))

    def wait_for(self, path):
        while not (self.folder / path).exists():
            if any(process.poll() is not None for process in self.started):
                sys.exit("".join(log.read_text() for log in self.folder.glob("*.log")))
            time.sleep(0.1)

    def end(self):
        for process in reversed(self.started):
            process.terminate()
        for process in reversed(self.started):
            process.wait()


def train(fleet, checkpoint, devices):
    """Runs two rounds; two of the three layers are shared."""
    (fleet.folder / "labels.txt").write_text("".join(f"{label}\n" for label in LABELS))
    fleet.call("skiff-pack", "build", "--checkpoint", checkpoint, "--labels", "labels.txt", "--rank", 4, "--out", "pack")
    (fleet.folder / "mosquitto.conf").write_text(
        f"listener {fleet.broker.rsplit(':')[-1]} 127.0.0.1\nallow_anonymous true\npersistence false\n")
    fleet.start("broker", shutil.which("mosquitto") or "/usr/sbin/mosquitto", "-c", "mosquitto.conf")
    fleet.start("coordinator", fleet.programs / "skiff", "serve", "--fleet", "golden", "--pack", "pack", "--state", "state",
                "--broker", fleet.broker)
    fleet.wait_for("state/coordinator.pub")
    fleet.wait_for("state/control.sock")
    key = (fleet.folder / "state/coordinator.pub").read_text().strip()
    for device, examples in devices.items():
        for part, lines in examples.items():
            (fleet.folder / f"{device}.{part}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        settings = dict(broker=fleet.broker, fleet="golden", device=device, pack="pack", train=f"{device}.train.jsonl",
                        test=f"{device}.test.jsonl", state=f"state-{device}", coordinator_key=key)
        (fleet.folder / f"{device}.toml").write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items())
                                                     + "threads = 1\n")
        fleet.start(device, fleet.programs / "skiff-agent", "run", "--config", f"{device}.toml")
    fleet.call("skiff", "run", "start", "--state", "state", "--rounds", 3, "--devices", len(devices), "--quorum", len(devices),
               "--steps", 25, "--batch", 8, "--set", "learning_rate=0.01", "--set", "sharing={least_important=2}", "--watch",
               timeout=600)


def logits(model, batch):
    with make.exact(), torch.no_grad():
        return model.eval().double()(**batch).logits


def base(checkpoint):
    return transformers.AutoModelForSequenceClassification.from_pretrained(
        checkpoint, num_labels=len(LABELS), attn_implementation="eager", dtype=torch.float32)


def correct(model, tokenizer, examples):
    batch = tokenizer([line["text"] for line in examples], padding=True, return_tensors="pt")
    predicted = logits(model, batch).argmax(1).tolist()
    return sum(LABELS[at] == line["label"] for at, line in zip(predicted, examples))


def check_card(folder, library, licence):
    card = huggingface_hub.ModelCard.load(os.path.join(folder, "README.md"))
    data = card.data.to_dict()
    expected = dict(library_name=library, license=licence, pipeline_tag="text-classification")
    found = {key: data.get(key) for key in expected}
    if found != expected or "skiff" not in data["tags"] or "base_model" in data or "language" in data:
        sys.exit(f"{folder}: the card's header is {data}")
    for word in [*LABELS, "LoRA", "rank 4", "accuracy"][:len(LABELS) + (3 if "own" not in str(folder) else 2)]:
        if word not in card.text:
            sys.exit(f"{folder}: the card does not tell {word!r}")


def main(programs, out):
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    golden = pathlib.Path(out, "fleet").resolve()
    shutil.rmtree(golden, ignore_errors=True)
    write_checkpoint(golden / "checkpoint")
    make.seed("fleet", "examples")
    devices = {device: dict(train=list(draw_examples(90)), test=list(draw_examples(30))) for device in ("ash", "oak")}
    fleet = Fleet(pathlib.Path(programs).resolve(), pathlib.Path(tempfile.mkdtemp(prefix="skiff-golden-")))
    try:
        train(fleet, golden / "checkpoint", devices)
        for form, name in ((["--last"], "adapter"), (["--last", "--merged"], "merged")):
            fleet.call("skiff", "run", "export", "--state", "state", "--base-model", "./checkpoint", *form, "--out", name)
        for device in devices:
            fleet.call("skiff-agent", "export", "--config", f"{device}.toml", "--base-model", "./checkpoint", "--out",
                       f"own-{device}")
        shown = json.loads(fleet.call("skiff", "run", "show", "--state", "state", "--json"))
    finally:
        fleet.end()
    tokenizer = transformers.AutoTokenizer.from_pretrained(golden / "checkpoint")
    loaded = dict(
        adapter=peft.PeftModel.from_pretrained(base(golden / "checkpoint"), fleet.folder / "adapter"),
        merged=transformers.AutoModelForSequenceClassification.from_pretrained(
            fleet.folder / "merged", attn_implementation="eager", dtype=torch.float32),
        **{f"own-{device}": peft.PeftModel.from_pretrained(base(golden / "checkpoint"), fleet.folder / f"own-{device}")
           for device in devices})
    check_card(fleet.folder / "adapter", "peft", "apache-2.0")
    check_card(fleet.folder / "merged", "transformers", "apache-2.0")
    check_card(fleet.folder / "own-oak", "peft", "apache-2.0")
    if loaded["merged"].config.id2label != dict(enumerate(LABELS)):
        sys.exit(f"the merged checkpoint's labels are {loaded['merged'].config.id2label}")

    # A device evaluates the shared layers with its own ones in their places.
    tests = [line for examples in devices.values() for line in examples["test"]]
    right = sum(correct(loaded[f"own-{device}"], tokenizer, examples["test"]) for device, examples in devices.items())
    figures = shown["metrics_after"]
    counted = round(figures["accuracy"] * figures["examples"])
    print(f"the devices counted {counted} of {figures['examples']} right, PEFT's models {right} of {len(tests)}")
    if (counted, figures["examples"]) != (right, len(tests)):
        sys.exit("the exported adapters are not the models that the devices evaluated")

    batch = dict(tokenizer([line["text"] for line in tests[:8]], padding=True, return_tensors="pt"))
    expected = {name: logits(model, batch) for name, model in loaded.items()}
    batch["labels"] = torch.tensor([LABELS.index(line["label"]) for line in tests[:8]])
    apart = ((expected["adapter"] - expected["merged"]).abs().max() / expected["adapter"].abs().max()).item()
    print(f"adapter and merged checkpoint differ by {apart:.1e} of the largest logit")
    if not apart <= 1e-5:
        sys.exit("more than 1e-05")
    for name in ("adapter", "own-oak"):
        shutil.copytree(fleet.folder / name, golden / name)
    make.save(batch, golden / "batch.safetensors")
    make.save({name: tensor.float() for name, tensor in expected.items()}, golden / "expected.safetensors")
    shutil.rmtree(fleet.folder)
    print(f"fleet: {make.size(golden) / 1e3:.0f} kB")


if __name__ == "__main__":
    main(*sys.argv[1:])
