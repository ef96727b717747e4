"""Whether files of a run are whole and belong to it, told without computing anything anew, and without torch."""
