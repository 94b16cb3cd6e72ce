"""Commands on a results folder: report, verify, audit, submit-attack, transfer.

Each imports what it needs, so that `report` loads no torch.
"""

from __future__ import annotations

import sys
from argparse import Namespace

from ..._errors import InvalidArgument
from .arguments import names_in
from .shared import load_plugins_with_warnings, show_report


def report_command(arguments: Namespace) -> int:
    """Write the report from records and show it; with options for a paper, figures and a table for one."""
    paper = ("models", "threats", "figures", "format", "width", "dpi", "style", "columns", "intervals")
    asked = (getattr(arguments, name) for name in paper)
    if any(value is not None and value is not False for value in asked):
        return _write_paper(arguments)
    if arguments.benchmarks:
        from ..records.store import Store
        from ..report.benchmark_tables import add_benchmarks

        Store(arguments.out).require_records()
        add_benchmarks(arguments.out, arguments.benchmarks)
    return show_report(arguments.out)


def _write_paper(arguments: Namespace) -> int:
    from ..report.paper import FORMATS, PaperOptions, write_paper

    if arguments.benchmarks:
        raise InvalidArgument("--benchmarks is of the report: leave it out with options for a paper")
    lists = {name: names_in(getattr(arguments, name)) for name in ("models", "threats", "figures", "columns")}
    formats = names_in(arguments.format) or FORMATS[:1]
    dpi = 300 if arguments.dpi is None else arguments.dpi
    for name, value in lists.items():
        if getattr(arguments, name) is not None and not value:
            raise InvalidArgument(f"--{name} names none")
    if not 30 <= dpi <= 2400:
        raise InvalidArgument(f"--dpi must be from 30 to 2400, not {dpi}")
    options = PaperOptions(
        **lists,
        formats=formats,
        dpi=dpi,
        width=arguments.width,
        style=arguments.style,
        intervals=arguments.intervals,
    )
    for path in write_paper(arguments.out, options):
        print(path)
    return 0


def verify_command(arguments: Namespace) -> int:
    """Re-check a results folder; 1 where something disagrees."""
    from ..plugins.model_file import named_models
    from ..verification.verify import verify

    load_plugins_with_warnings()
    references = names_in(arguments.models)
    if arguments.models is not None and not references:
        raise InvalidArgument("--models names no model")
    names, specs = named_models(references)
    done = verify(
        arguments.out,
        arguments.data_root,
        list(specs.values()),
        only=names if any(".py" not in reference for reference in references) else None,
        say=lambda line: print(line, flush=True),
    )
    for note in done.notes:
        print(f"note: {note}")
    of = f" of {done.models + len(done.unrun)}" if done.unrun else ""
    if done.unrun:
        print(
            f"not run again: {', '.join(done.unrun)}; of them records, tables and files were checked, not "
            "weights and examples: see the notes, and name model files with --models FILE.py:FACTORY"
        )
    print(
        f"checked: records {done.records}, models {done.models}{of}, adversarial examples {done.predicted}; "
        f"disagreements: {len(done.disagreements)}, notes: {len(done.notes)}"
    )
    for finding in done.disagreements:
        print(f"disagrees: {finding}", file=sys.stderr)
    return 1 if done.disagreements else 0


def audit_command(arguments: Namespace) -> int:
    """Audit trained models, then show the report; 1 where an audit failed."""
    from ..audits.run import audit_folder

    if arguments.jobs is not None and arguments.jobs < 1:
        raise InvalidArgument(f"--jobs must be at least 1, not {arguments.jobs}")
    load_plugins_with_warnings()
    done = audit_folder(
        arguments.out,
        arguments.data_root,
        models=names_in(arguments.models),
        checks=names_in(arguments.checks),
        samples=arguments.samples,
        seeds=arguments.seed or arguments.seeds,
        fresh=arguments.fresh,
        jobs=arguments.jobs,
        time_limit=arguments.time_limit,
        load=arguments.load,
        say=lambda line: print(line, flush=True),
    )
    print(f"{done.done} checks done, {done.skipped} stored already")
    status = show_report(arguments.out)
    for line in done.failures:
        print(f"failed: {line}", file=sys.stderr)
    return 1 if done.failures else status


def submit_attack_command(arguments: Namespace) -> int:
    """Take in adversarial examples from a file; 1 where none succeeds."""
    from ..report.report import write_report
    from ..verification.screening import REMEDIES
    from ..verification.submit import submit
    from ..verification.submitted_file import read_submission

    load_plugins_with_warnings()
    sent = read_submission(arguments.file)
    result = submit(
        arguments.out,
        sent,
        arguments.model,
        norm=arguments.norm,
        seed=arguments.seed,
        recipe=arguments.recipe,
        data_root=arguments.data_root,
    )
    cell = result.cell
    for reason, count in sorted(result.rejected.items()):
        print(f"rejected {count}: {reason}")
        for begin in filter(reason.startswith, REMEDIES):
            print(f"  {REMEDIES[begin]}")
    others = [norm for norm in result.norms if norm != cell.norm and arguments.norm is None]
    if others and any(reason.startswith("out of budget") for reason in result.rejected):
        print(f"the norm was {cell.norm}; --norm {others[0]} uses {others[0]}")
    print(f"accepted {result.accepted} of {len(sent.index)}, from {sent.origin}")
    if not result.accepted:
        against = f"{cell.model} in {cell.norm} {cell.strength:g}"
        print(f"no new adversarial example succeeds against {against}", file=sys.stderr)
        return 1
    which = f"{cell.model} ({cell.recipe['name']}) seed {cell.training_seed}"
    where = f"{which}, {cell.norm} {cell.strength:g}"
    remark = "" if result.after < result.before else ": no further sample is broken"
    remark = remark if result.new else " (stored already)"
    print(f"{where}: worst case {result.before:.1%} -> {result.after:.1%}{remark}")
    print(f"page: {write_report(arguments.out).page.resolve()}")
    return 0


def transfer_command(arguments: Namespace) -> int:
    """Replay stored adversarial examples on other models; 1 where a replay failed."""
    from ..plugins.model_file import named_models
    from ..records.store import Store
    from ..runner.model_transfer import replay_all

    store = Store(arguments.out)
    store.require_records()
    load_plugins_with_warnings()
    names, specs = named_models(names_in(arguments.models))
    if arguments.models is not None and not names:
        raise InvalidArgument("--models names no model")
    with store.lock():
        done = replay_all(
            store,
            names=names or None,
            specs=list(specs.values()),
            data_root=arguments.data_root,
            say=lambda line: print(line, flush=True),
        )
    for note in done.notes:
        print(f"note: {note}")
    print(f"{done.done} cells done, {done.skipped} stored already")
    status = show_report(arguments.out)
    for line in done.failures:
        print(f"failed: {line}", file=sys.stderr)
    return 1 if done.failures else status


def merge_command(arguments: Namespace) -> int:
    """Make one results folder of several, then its report."""
    from ..records.merge import merge

    done = merge(arguments.folders, arguments.out)
    for note in done.notes:
        print(f"note: {note}", file=sys.stderr)
    print(f"{done.records} records of {done.models} models in {arguments.out}")
    return show_report(arguments.out)


def upgrade_command(arguments: Namespace) -> int:
    """Convert a results folder of schema 1."""
    from ..records.upgrade import upgrade

    done = upgrade(arguments.out, say=lambda line: print(line, flush=True))
    if not done.records and not done.set_aside:
        print(f"{arguments.out} is of this version already")
        return 0
    for name in done.set_aside:
        print(f"copied to set-aside/, not converted: {name}")
    print(
        f"{done.records} records, {done.examples} sets of adversarial examples and {done.checkpoints} "
        f"checkpoints converted; next: robustode {'report' if done.records else 'run'} --out {arguments.out}"
    )
    return 0
