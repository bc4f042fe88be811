"""What stands in the way of an export, all of it at once: where it is, and the ways out."""

from __future__ import annotations

from fxexport.doctor.examination import diagnose_failure, doctor
from fxexport.doctor.finding import Diagnosis, Finding

__all__ = ["Diagnosis", "Finding", "diagnose_failure", "doctor"]
