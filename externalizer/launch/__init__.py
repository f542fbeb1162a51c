"""Starting trees so that a dump and a restore find no obstacle: new pid namespaces, and work in others."""
