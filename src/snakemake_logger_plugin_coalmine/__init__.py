"""One readable display of a run for Snakemake: ``snakemake results/table1.csv --cores all --logger coalmine``.

In a terminal, a block of lines that is drawn in place: stages, what runs now, how long the run still takes. Elsewhere,
one line a finished job and one a minute otherwise. Failures are told at once. Whatever is no run (``--dry-run``,
``--lint``, ``--summary``, …), or is asked to be verbose or silent, is left to Snakemake's own words.

    estimate    how long a run still takes; pure
    display     what a person sees; pure
    run         the state of a run
    rule_names  what the names of rules say
    records     what jobs took before
    announce    tells all jobs of a run, from the Snakefile
    terminal    draws in place
    logs        what running and failed jobs printed
    live        all of it on a stream, event by event and second by second

Snakemake imports this before the Snakefile says where `coalmine` is: no module of it may be imported from here, or a
second checkout in the same environment would run the first one's code.
"""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent

from snakemake_logger_plugin_coalmine.announce import JOBS
from snakemake_logger_plugin_coalmine.live import Live
from snakemake_logger_plugin_coalmine.run import Run, amounts

if TYPE_CHECKING:
    from snakemake_interface_logger_plugins.settings import OutputSettingsLoggerInterface

__all__ = ["LogHandler"]

_CHATTER = re.compile(
    r"Assuming unrestricted shared filesystem|Using shell: |Conda environments: ignored|Select jobs to execute"
    r"|Singularity containers: ignored|Group jobs: inactive|Removing output files of failed job|Complete log\(s\): "
    r"|Elapsed time: |Storing (output )?in storage|Job \d+ has been submitted with SLURM jobid"
    r"|Retrieving from storage: |Finished (upload|retrieval)\.|Removing local copy of storage file: "
    r"|Exiting because a job execution failed|WorkflowError:\nAt least one job did not complete successfully"
)
"""What Snakemake says in passing, or in more words than the display. Everything else is passed on."""
_INTERRUPTED = re.compile(r"Terminating processes on user request")
_HANDLED = {
    LogEvent.RESOURCES_INFO,
    LogEvent.RUN_INFO,
    LogEvent.JOB_INFO,
    LogEvent.JOB_STARTED,
    LogEvent.JOB_FINISHED,
    LogEvent.JOB_ERROR,
    LogEvent.GROUP_INFO,
    LogEvent.GROUP_ERROR,
    LogEvent.PROGRESS,
    LogEvent.SHELLCMD,
    JOBS,
}


class LogHandler(LogHandlerBase):
    """Snakemake's stream of events, as a display."""

    def __post_init__(self) -> None:
        from snakemake.logging import ColorizingTextHandler, DefaultFilter, DefaultFormatter

        settings = self.common_settings
        self._stream: TextIO = sys.stdout if settings.stdout else sys.stderr
        # Snakemake's own words, exactly as they are without this plugin.
        self._plain = ColorizingTextHandler(
            nocolor=settings.nocolor,
            stream=self._stream,
            formatter=DefaultFormatter(settings.quiet, settings.show_failed_logs),
            filter=DefaultFilter(
                settings.quiet, settings.debug_dag, settings.verbose, settings.dryrun, settings.printshellcmds
            ),
        )
        self._leave_it_to_snakemake = _wants_snakemakes_words(settings)
        self._resources: dict[str, Any] = {}
        self._remote = False
        self._display: Live | None = None

    writes_to_stream = True
    writes_to_file = False
    has_filter = True
    has_formatter = True
    needs_rulegraph = False

    def emit(self, record: logging.LogRecord) -> None:
        """Show an event. A fault in here is told once and leaves the rest of the run to Snakemake's own words."""
        if self._leave_it_to_snakemake:
            self._quote(record)
            return
        try:
            self._show(record)
        except Exception as error:
            self._give_up(error)
            self._quote(record)

    def close(self) -> None:
        """Say how the run ended."""
        if self._display is not None and not self._leave_it_to_snakemake:
            try:
                self._display.close(time.time())
            except Exception as error:
                self._give_up(error)
        super().close()

    def _show(self, record: logging.LogRecord) -> None:
        told = record.__dict__
        event = told.get("event")
        if event == LogEvent.WORKFLOW_STARTED:
            return
        if event == LogEvent.RESOURCES_INFO:
            self._learn_resources(told)
        elif event == LogEvent.RUN_INFO:
            stats = {rule: count for rule, count in told["stats"].items() if rule != "total"}
            run = Run(record.created, stats, amounts(self._resources), self._remote)
            self._display = Live(run, self._stream, nocolor=self.common_settings.nocolor, on_error=self._give_up)
        elif self._display is None:
            self._pass_on(record)
        elif event in _HANDLED:
            self._display.tell(str(event), told, record.created)
        elif event != LogEvent.ERROR or not _is_told_by_job_error(record):
            self._pass_on(record)

    def _pass_on(self, record: logging.LogRecord) -> None:
        """Let Snakemake say what is not of this display."""
        if _CHATTER.match(str(record.msg)):
            return
        if self._display is None:
            self._quote(record)
            return
        if _INTERRUPTED.match(str(record.msg)):
            self._display.interrupt()
        if self._plain.filter(record):
            text = self._plain.format(record)
            if text and text != "None":
                self._display.say(text, record.created)

    def _quote(self, record: logging.LogRecord) -> None:
        """Say it in Snakemake's words. Where nobody listens any more (``| head``), the run still goes on."""
        with suppress(BrokenPipeError):
            self._plain.handle(record)

    def _learn_resources(self, told: Mapping[str, Any]) -> None:
        self._resources |= dict(told.get("provided_resources") or {})
        self._remote |= "nodes" in told

    def _give_up(self, error: Exception) -> None:
        """Stop the display, and say so once. Where its stream is gone, there is nobody to tell."""
        self._leave_it_to_snakemake = True
        if self._display is not None:
            self._display.stop()
        frame = error.__traceback__
        while frame is not None and frame.tb_next is not None:
            frame = frame.tb_next
        where = f"{Path(frame.tb_frame.f_code.co_filename).name}, line {frame.tb_lineno}" if frame else "?"
        with suppress(BrokenPipeError):
            print(
                f"The display of --logger coalmine stopped ({where}: {type(error).__name__}: {error}). The run is not "
                "affected and goes on in Snakemake's own words. Please report this as a bug of Coalmine.",
                file=sys.stderr,
            )


def _wants_snakemakes_words(settings: OutputSettingsLoggerInterface) -> bool:
    """Whether this is no run, or one of which more or less was asked for than a display."""
    quiet = {getattr(choice, "name", str(choice)).lower() for choice in settings.quiet or ()}
    more = settings.verbose or settings.debug_dag or settings.printshellcmds
    return bool(settings.dryrun or more or quiet & {"all", "progress"})


def _is_told_by_job_error(record: logging.LogRecord) -> bool:
    """Whether this is the whole command of a job that failed: its ``JOB_ERROR`` says so in fewer words."""
    return "\nCalledProcessError in file" in str(record.msg)
