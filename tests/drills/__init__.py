"""What users are promised, tried against real failures: real processes, real signals, real files.

A drill is a test that counts its trials; ``make drills`` runs all of them and writes docs/reliability.md.
"""
