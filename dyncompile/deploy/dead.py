"""dead"""
def drop_dead_channels(graph, owner):
    return
