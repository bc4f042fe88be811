"""Atomic publishing: the requested path holds the old artifact or the new one, never a part of either.

The candidate is written, checked and run in a *staging directory* beside the destination (same file system,
final file names). Publishing makes its files durable and moves them with ``os.replace``: data files first,
the main file last. A data file carries a hash of its content in its name (`data_file_name`), so a new one
never overwrites the one that the old main file still reads, and a crash at any instant leaves a pair that
loads. What a crash leaves behind is recognised by its name and removed by the next run, under the lock of
that destination.

Several files that belong together (`joint_publication`) are moved the same way, after every file they replace
was kept in the staging directory and the moves were written down there: whatever stops them halfway, the old
files come back, in this run or, after a kill, in the next one.

Names beside ``m.onnx``: ``.m.onnx.<8 hex>.fxexport-tmp`` (staging), ``.m.onnx.fxexport-lock`` (while a run is
active), ``m.onnx.<12 hex>.data`` (weights), ``m.onnx.rejected`` (a candidate that failed its checks).
"""

from fxexport.publishing.joint import JointStaging, joint_publication
from fxexport.publishing.staging import Staging, publication

__all__ = ["JointStaging", "Staging", "joint_publication", "publication"]
