import json

import pytest
import torch

import condgen

hub = pytest.importorskip("condgen.apps.hub", reason="huggingface_hub is not installed")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "cells"
    cells = condgen.load_smears(160, size=16)
    model = condgen.conditional_vae(cells.image_shape, 8, latent=4, width=4)
    condgen.fit(model, cells, epochs=1, out=out, progress=False)
    return out


def test_a_folder_comes_back_as_the_same_model(run, tmp_path):
    model = condgen.load(run)
    hub.Pretrained(model, run).save_pretrained(tmp_path / "cells")
    for again in (hub.Pretrained.from_pretrained(tmp_path / "cells").model, condgen.load(tmp_path / "cells")):
        assert torch.equal(again.sample([0, 5], seed=3), model.sample([0, 5], seed=3))
        assert again.class_names == model.class_names
    about = json.loads((tmp_path / "cells" / "config.json").read_text())
    assert about["model_type"] == "ConditionalVAE"
    assert about["class_names"] == list(model.class_names)


def test_the_card_tells_how_it_was_trained_and_that_nobody_looked(run):
    card = hub.model_card(condgen.load(run), run, license="cc-by-4.0")
    assert card.startswith("---\nlibrary_name: condgen\n")
    assert "license: cc-by-4.0" in card
    assert "epochs done: 1" in card
    assert "Not for clinical use" in card
    assert "was not evaluated" in card


def measured(weights):
    measure = {"overall": 3.2, "floor": 0.41, "better": "lower", "title": "FID", "per_class": {}, "interval": None}
    return {
        **{"format": 1, "condgen": "0.1.0", "date": "2026-01-01", "name": "cells", "groups": [], "warnings": []},
        **{"model": {"weights": weights}, "settings": {"images": 300}, "measures": {"fid": measure}},
        "verdict": {
            "answer": "no",
            "headline": "Not good enough.",
            "findings": [{"title": "Blurred", "text": "a mist"}],
        },
    }


def test_the_card_tells_what_the_evaluation_found(run, tmp_path):
    from condgen.io.archives import weights_hash

    model = condgen.load(run)
    (tmp_path / "evaluation.json").write_text(json.dumps(measured(weights_hash(model.state_dict()))))
    card = hub.model_card(model, tmp_path)
    assert "Not good enough.\n\n- Blurred: a mist" in card
    assert "| FID | 3.2 | 0.41 | lower |" in card
    (tmp_path / "evaluation.json").write_text(json.dumps(measured("other")))
    with pytest.raises(ValueError, match="is of other weights"):
        hub.model_card(model, tmp_path)


def test_names_that_are_no_folder_go_to_the_hub(monkeypatch, run):
    asked = []

    def download(name, file, **where):
        asked.append((name, file, where["revision"]))
        return str(run / file)

    monkeypatch.setattr(hub, "hf_hub_download", download)
    monkeypatch.setattr("huggingface_hub.hub_mixin.hf_hub_download", lambda *_, **__: str(run / "run.json"))
    again = hub.Pretrained.from_pretrained("someone/cells", revision="v1").model
    assert asked == [("someone/cells", "model.safetensors", "v1")]
    assert again.image_shape == (3, 16, 16)


def test_the_command_line(run, tmp_path, capsys):
    from condgen.cli import main

    assert main(["export", str(run), "--to", "hub", "--out", str(tmp_path / "out")]) == 0
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    assert str(tmp_path / "out") in capsys.readouterr().out


def test_the_card_of_the_model_that_comes_with_condgen_has_its_evaluation(tmp_path):
    from condgen.cli import main

    assert main(["export", "bloodmnist", "--to", "hub", "--out", str(tmp_path)]) == 0
    card = (tmp_path / "README.md").read_text()
    assert "| FID |" in card  # an evaluation of other weights would have been refused
    assert "was not evaluated" not in card
