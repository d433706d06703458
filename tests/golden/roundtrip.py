"""Checks what `skiff-pack` writes with the libraries that others will open it with.

usage: roundtrip.py adapter VARIANT_DIR CASE_DIR EXPORTED_DIR   `export`: PEFT loads the adapter onto the variant's checkpoint
       roundtrip.py merged CASE_DIR EXPORTED_DIR                `export --merged`: transformers loads the plain checkpoint
       roundtrip.py onnx PACK_DIR...                            ONNX's checker accepts every graph, standard operators only

The packs exported from must hold the case's weights; the logits must then be those of CASE_DIR/expected.safetensors.
"""
import os, pathlib, sys, warnings
import onnx, peft, torch, transformers
from safetensors.torch import load_file

sys.dont_write_bytecode = True    # the folder holds data; leave nothing beside it
import make

RELATIVE = 1e-5    # of the largest logit: merged weights are rounded to float32, the logits of both sides are not


def check_adapter(variant, case, exported):
    settings = make.read_json(os.path.join(case, "case.json"))
    model, head = make.load(os.path.join(variant, "checkpoint"), settings["task"], settings["labels"])
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name in head
    make.round_frozen(model, settings["frozen"])
    check_logits(peft.PeftModel.from_pretrained(model, exported), case)


def check_merged(case, exported):
    task = make.read_json(os.path.join(case, "case.json"))["task"]
    model, report = make.TASKS[task][0].from_pretrained(exported, dtype=torch.float32, attn_implementation="eager",
                                                        output_loading_info=True)
    if report["missing_keys"] or report["unexpected_keys"]:
        sys.exit(f"{exported}: missing tensors {report['missing_keys']}, superfluous ones {report['unexpected_keys']}")
    check_logits(model, case)


def check_logits(model, case):
    batch = load_file(os.path.join(case, "batch.safetensors"))
    del batch["labels"]
    with make.exact(), torch.no_grad():
        found = model.eval().double()(**batch).logits
    if found.ndim == 3:
        found = found[batch["attention_mask"].bool()]
    expected = load_file(os.path.join(case, "expected.safetensors"))["all/logits"].double()
    if found.shape != expected.shape:
        sys.exit(f"{case}: logits have shape {tuple(found.shape)}, expected {tuple(expected.shape)}")
    error = ((found - expected).abs().max() / expected.abs().max()).item()
    print(f"{case}: logits differ by {error:.1e} of the largest")
    if not error <= RELATIVE:
        sys.exit(f"{case}: more than {RELATIVE:.0e}")


def check_onnx(*packs):
    for pack in packs:
        # Those of fused operators are the agent's own.
        graphs = sorted(path for path in pathlib.Path(pack).glob("graphs/**/*.onnx") if not path.name.startswith("fused."))
        if not graphs:
            sys.exit(f"{pack}: no graphs/*.onnx")
        for graph in graphs:
            onnx.checker.check_model(str(graph), full_check=True)
            foreign = {opset.domain for opset in onnx.load(str(graph), load_external_data=False).opset_import} - {"", "ai.onnx"}
            if foreign:
                sys.exit(f"{graph}: operators of {sorted(foreign)}")
        print(f"{pack}: {len(graphs)} graphs are valid")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    checks = dict(adapter=(check_adapter, 3), merged=(check_merged, 2), onnx=(check_onnx, None))
    check, count = checks.get(sys.argv[1] if len(sys.argv) > 1 else "", (None, 0))
    if check is None or len(sys.argv) < 3 or count not in (None, len(sys.argv) - 2):
        sys.exit(__doc__)
    check(*sys.argv[2:])
