"""The command line: one short file per verb. torch is imported by the verbs that compute, when they compute."""
