"""The experiments of the sources, one file each. What a study is stands in `gradoscope.study`."""
