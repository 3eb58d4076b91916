"""Curation: from raw JSON lines to the data of a recipe, shard by shard, in one process or on a Ray cluster.

shards, records     files cut into pieces that a task can read by itself
executor, ray_executor    where tasks run; nothing else knows it
language, quality   rules that drop a document, as data
duplicates, minhash       exact and near duplicates
decontamination     what occurs in an evaluation set
lengths, mixture    what each source gives to a training run
vectors, vector_free, two_loop, minimize, logistic, classifier    the quality classifier and how it is trained
config, pipeline, report  the command's file, its work, what it says at the end
"""
