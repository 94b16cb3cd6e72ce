"""What is registered, for people and, as JSON, for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..._errors import InvalidArgument

if TYPE_CHECKING:
    from ...models import ModelSpec


def entries(what: str) -> list[dict[str, Any]]:
    """The registered `what` (models, threats, datasets, presets, audits), one dictionary each."""
    if what == "presets":
        from ..config.preset import load_preset, preset_names

        presets = [load_preset(name) for name in preset_names()]
        return [{"name": p.name, "summary": p.title, "dataset": p.dataset, "cost": p.cost} for p in presets]
    if what == "datasets":
        from ..data import DATASETS

        return [{"name": d.name, "summary": d.summary, "classes": d.num_classes} for d in DATASETS]
    if what == "threats":
        from ...attacks import THREATS
        from ...attacks.libraries.lookup import installed_attacks

        of_libraries = [
            {"name": f"{library}:NAME", "summary": f"of {library}: {', '.join(names)}", "attacks": names}
            for library, names in installed_attacks().items()
        ]
        return (
            [
                {
                    "name": t.name,
                    "family": t.family,
                    "norm": t.norm,
                    "strength": t.strength_name,
                    "parameters": dict(t.parameters),
                    "version": t.version,
                    "reference": t.reference,
                }
                for t in THREATS
            ]
            + _of_no_preset()
            + of_libraries
        )
    if what == "audits":
        from ..audits.library import all_audits

        return [
            {
                "name": a.name,
                "summary": a.title,
                "needs": a.needs,
                "fast": a.fast,
                "cost": a.cost,
                "version": a.version,
                "reference": a.reference,
            }
            for a in all_audits()
        ]
    from ...models import MODELS
    from ..plugins.entry_points import load_plugins

    load_plugins()
    return [
        {
            "name": m.name,
            "summary": m.summary,
            "claims": sorted(m.claims),
            "hyperparameters": _hyperparameters(m),
            "expected_failures": dict(m.expected_failures),
            "version": m.version,
            "plugin": m.plugin,
            "reference": m.reference,
        }
        for m in MODELS
    ]


def listing(what: str, *, as_json: bool) -> str:
    """Text of ``robustode list``: one line an entry, or JSON."""
    found = entries(what)
    if as_json:
        return json.dumps(found, indent=1, ensure_ascii=False)
    width = max(len(entry["name"]) for entry in found)
    lines = []
    for entry in found:
        about = entry.get("summary") or _threat(entry)
        extra = f"; {entry['cost']}" if what == "presets" and entry["cost"] else ""
        extra += f" (plug-in {entry['plugin']})" if entry.get("plugin") else ""
        lines.append(f"{entry['name']:<{width}}  {about}{extra}")
        if what == "audits":
            lines += [f"{'':<{width}}    {key}: {entry[key]}" for key in ("cost", "reference") if entry[key]]
        lines += [
            f"{'':<{width}}    expected to fail {k}: {v}"
            for k, v in entry.get("expected_failures", {}).items()
        ]
    return "\n".join(lines)


def _of_no_preset() -> list[dict[str, Any]]:
    """The threats in records that no preset lists: what is stored or sent is shown to a model as it is."""
    from ..records.record import REPLAY, REPLAYS, SUBMISSION
    from ..runner.model_transfer import TRANSFER_VERSION

    replayed = "stored examples of all other models, by `robustode transfer` or `transfer = true` in a preset"
    about: list[tuple[str, str, str | None, int, str]] = [
        (name, REPLAY, norm, TRANSFER_VERSION, replayed) for norm, name in REPLAYS.items()
    ]
    sent = "examples that someone sent, by `robustode submit-attack`"
    about.append(("submitted-*", SUBMISSION, None, 1, sent))
    return [
        {
            "name": name,
            "family": family,
            "norm": norm,
            "strength": "eps",
            "parameters": {},
            "version": version,
            "reference": "",
            "summary": summary,
        }
        for name, family, norm, version, summary in about
    ]


def _threat(entry: Mapping[str, Any]) -> str:
    """What kind of threat it is, and what its strengths mean."""
    if entry["name"] == entry["family"]:
        return "the images as they are"
    return f"{entry['family']}, {entry['strength']}{' in ' + entry['norm'] if entry['norm'] else ''}"


def _hyperparameters(model: ModelSpec) -> dict[str, Any]:
    """As records hold them; none of a model that a run refuses for them."""
    try:
        return model.recorded()
    except InvalidArgument:
        return {}
