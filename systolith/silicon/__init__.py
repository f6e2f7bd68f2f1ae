"""Area, power and money of this project's chips, as ranges: docs/decisions/0014-silicon.md."""
