"""Pipeline of a run: pairs are read chip by chip, analyzed by a model, and written as features.

The way of the data:

    pairs, pair_lists, job        what to do, as plain values; `plan` and `estimate` tell what it will take
    run                           checks, locks, and the steps below for each output
    reading, prefetch, engine     chips of the pairs in order, read in advance
    inference, answers, dedup     replies of the model as answers, one for all chips with the same pixels
    analyze                       the loop: a batch of chips is read, answered and stored
    results, journal, writer      results of chips, kept on disk or streamed
    output_layers, changes        the output from its journal: layers, polygons of change, rasters
    run_result, summary, totals   what is told at the end
    outputs_reader                an output read again, by reports, summaries, `polygonize` and `review`
    calibrate                     a calibration fitted to scores and labels of chips
"""
