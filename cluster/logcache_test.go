package cluster

import (
	"runtime"
	"testing"
	"weak"

	"github.com/hashicorp/raft"
)

// TestLogCacheKeepsEntriesOnly: what raft hands over is part of a larger object,
// which holds what the entry's commands were answered, whole rows among it.
func TestLogCacheKeepsEntriesOnly(t *testing.T) {
	type future struct {
		log      raft.Log
		response []byte
	}
	f := &future{log: raft.Log{Index: 1, Data: []byte("entry")}, response: make([]byte, 1<<10)}
	gone := weak.Make(f)
	var c logCache
	c.put([]*raft.Log{&f.log})
	f = nil
	runtime.GC()
	if gone.Value() != nil {
		t.Error("the entry's answer is kept with it")
	}
	var got raft.Log
	if !c.get(1, &got) || string(got.Data) != "entry" {
		t.Errorf("the entry is gone: %v", got)
	}
}
