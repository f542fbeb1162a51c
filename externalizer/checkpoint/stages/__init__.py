"""What the hook does at each of criu's stages. One file a stage, each with `run(pid, images)`.

`pid` is the tree's root in criu's pid namespace, `images` a descriptor of the image directory. Raising
anything is a veto.
"""
