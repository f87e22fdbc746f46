"""What finished outputs come to: totals by area, a report of one page, a catalogue entry."""
