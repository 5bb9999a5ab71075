module github.com/baton-cluster/baton/test/jepsen-lite

go 1.26.0

// As in the root module: exclude does not reach importers.
exclude github.com/hashicorp/raft-boltdb/v2 v2.3.1

replace github.com/baton-cluster/baton => ../..

require github.com/anishathalye/porcupine v1.3.1
