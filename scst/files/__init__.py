"""Reading files that somebody else may have made: regular files only, of bounded size, without surprises.

``reading`` opens them, ``json_reader`` and ``yaml_reader`` parse them. Every error is one short sentence.
Nothing here knows what the files are about.
"""
