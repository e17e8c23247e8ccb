"""Many texts into one file of vectors. Killed at any moment it goes on where it was; several processes share the work.

    unfinished = Unfinished(Path("vectors.npy"))
    encode_file(encoder, texts, unfinished, facts)

The last bits of a vector depend on the texts that are computed beside it. So work begins, and is shared out, at the borders
of the encoder's windows only: the file is the same to the bit however often the run was killed, and with however many
processes.
"""
