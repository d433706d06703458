"""Writes the golden numbers: small random BERT classifiers with LoRA, computed by PyTorch and PEFT in float64.

usage: make.py OUT_DIR          (needs: torch transformers peft safetensors; not run by CI)

For each case a folder OUT_DIR/NAME with
  checkpoint/{config.json,model.safetensors,tokenizer.json}   what `skiff-pack build` takes
  weights.safetensors         values of the trainable tensors, with PEFT's names
  batch.safetensors           input_ids, attention_mask, token_type_ids, labels
  ACTIVE.safetensors          for each layer mask: loss, logits, grad.NAME (float64)
and OUT_DIR/training.safetensors: the loss of 50 AdamW steps of the first case, and the weights after them.
"""
import copy, json, os, sys
import torch, transformers, peft
from safetensors.torch import save_file
from transformers import BertConfig, BertForSequenceClassification

CASES = {
    # name: (layers, hidden, heads, feed-forward, vocabulary, classes, rank, batch, longest, seed)
    "small": (3, 32, 4, 64, 50, 4, 4, 3, 9, 1),
    "odd": (2, 24, 3, 40, 37, 7, 3, 5, 13, 2),
}


def build(layers, hidden, heads, inner, vocabulary, classes, rank, seed):
    torch.manual_seed(seed)
    config = BertConfig(vocab_size=vocabulary, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
                        intermediate_size=inner, num_labels=classes, hidden_dropout_prob=0.0,
                        attention_probs_dropout_prob=0.0, max_position_embeddings=32)
    config._attn_implementation = "eager"
    model = BertForSequenceClassification(config)
    # Fresh initial values are tame (standard deviation 0.02, norms exactly one): make every part matter.
    for name, parameter in model.named_parameters():
        spread = 0.3 if parameter.ndim > 1 else 0.1
        parameter.data = torch.randn_like(parameter) * spread + (1.0 if "LayerNorm.weight" in name else 0.0)
    checkpoint = {name: tensor.contiguous() for name, tensor in model.state_dict().items()
                  if not name.startswith("classifier")}
    wrapped = peft.get_peft_model(model, peft.LoraConfig(task_type="SEQ_CLS", r=rank, lora_alpha=2 * rank,
                                                         lora_dropout=0.0, target_modules=["query", "value"]))
    for name, parameter in wrapped.named_parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn_like(parameter) * 0.2
    return config, checkpoint, wrapped


def peft_name(name):
    return name.replace(".default", "").replace("modules_to_save.", "")


def trainable(model):
    return {peft_name(name): parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def save(tensors, path):
    save_file({name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}, path)


def draw_batch(vocabulary, classes, batch, longest):
    lengths = torch.randint(1, longest + 1, (batch,))
    lengths[0] = longest
    mask = (torch.arange(longest)[None, :] < lengths[:, None]).long()
    return dict(input_ids=torch.randint(0, vocabulary, (batch, longest)) * mask, attention_mask=mask,
                token_type_ids=torch.randint(0, 2, (batch, longest)) * mask,
                labels=torch.randint(0, classes, (batch,)))


def run(model, inputs, active):
    encoder = model.base_model.model.bert.encoder
    every = encoder.layer
    model.zero_grad(set_to_none=True)
    encoder.layer = torch.nn.ModuleList([every[i] for i in active])
    out = model(**inputs)
    out.loss.backward()
    encoder.layer = every
    return out


def masks(layers):
    chosen = {"all": list(range(layers)), "first": [0], "last": [layers - 1], "second": list(range(0, layers, 2))}
    return {"-".join(map(str, active)): active for active in chosen.values()}


def make(out, name, layers, hidden, heads, inner, vocabulary, classes, rank, batch, longest, seed):
    folder = os.path.join(out, name)
    os.makedirs(os.path.join(folder, "checkpoint"), exist_ok=True)
    config, checkpoint, model = build(layers, hidden, heads, inner, vocabulary, classes, rank, seed)
    sizes = {key: getattr(config, key) for key in (
        "num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "vocab_size",
        "max_position_embeddings", "type_vocab_size", "layer_norm_eps", "hidden_act")}
    with open(os.path.join(folder, "checkpoint/config.json"), "w") as file:
        json.dump(dict(model_type="bert", **sizes), file, indent=1)
    with open(os.path.join(folder, "checkpoint/tokenizer.json"), "w") as file:
        json.dump(dict(version="1.0", truncation=None, padding=None, added_tokens=[], normalizer=None,
                       pre_tokenizer=dict(type="Whitespace"), post_processor=None, decoder=None,
                       model=dict(type="WordLevel", vocab={"[UNK]": 0}, unk_token="[UNK]")), file)
    save(checkpoint, os.path.join(folder, "checkpoint/model.safetensors"))
    save(trainable(model), os.path.join(folder, "weights.safetensors"))
    with open(os.path.join(folder, "case.json"), "w") as file:
        json.dump(dict(classes=classes, rank=rank, alpha=2 * rank), file)
    inputs = draw_batch(vocabulary, classes, batch, longest)
    save(inputs, os.path.join(folder, "batch.safetensors"))
    exact = copy.deepcopy(model).double()
    for label, active in masks(layers).items():
        result = run(exact, inputs, active)
        tensors = dict(loss=result.loss, logits=result.logits)
        tensors.update({f"grad.{key}": value.grad for key, value in trainable(exact).items() if value.grad is not None})
        save(tensors, os.path.join(folder, f"{label}.safetensors"))
    return model, inputs, layers


def training(out, model, inputs, layers):
    """50 AdamW steps in float64, PyTorch's defaults but for the rate, cycling through three masks."""
    model = model.double()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    cycle, losses = [list(range(layers)), [0, layers - 1], [1]], []
    for step in range(50):
        losses.append(run(model, inputs, cycle[step % 3]).loss.detach())
        optimizer.step()
    save(dict(losses=torch.stack(losses), **trainable(model)), os.path.join(out, "training.safetensors"))


if __name__ == "__main__":
    target = sys.argv[1]
    made = [make(target, name, *sizes) for name, sizes in CASES.items()]
    training(target, *made[0])
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, peft {peft.__version__}: {target}")
