package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/raft"

	product "github.com/baton-cluster/baton/cluster"

	"github.com/baton-cluster/baton/test/jepsen-lite/nemesis"
)

// damageTries opens a log of 32 MiB each.
const damageTries = 25

// TestDamageIsNoticed: whatever Damage does to a log, the product does not open
// it, and says so.
func TestDamageIsNoticed(t *testing.T) {
	c := &cluster{dir: t.TempDir()}
	data := c.data(0)
	if err := os.Mkdir(data, 0o700); err != nil {
		t.Fatal(err)
	}
	open := func() (raft.LogStore, func(), error) {
		logs, _, _, closer, err := product.WALDisk{}.Open(data)
		if err != nil {
			return nil, nil, err
		}
		return logs, func() { _ = closer.Close() }, nil
	}
	logs, closeLog, err := open()
	if err != nil {
		t.Fatal(err)
	}
	for i := range uint64(50) {
		if err := logs.StoreLog(&raft.Log{Index: i + 1, Term: 1, Data: make([]byte, 10*i)}); err != nil {
			t.Fatal(err)
		}
	}
	closeLog()
	for pick := range uint64(damageTries) {
		what, sure, err := c.Damage(0, nemesis.FlipLog, pick)
		if err != nil || !sure {
			t.Fatalf("%s: sure %v, %v", what, sure, err)
		}
		if _, closeLog, err := open(); err == nil {
			closeLog()
			t.Fatalf("%s is not noticed", what)
		} else if !strings.Contains(err.Error(), "damaged") {
			t.Errorf("%s: %v", what, err)
		}
		if _, _, err := c.Damage(0, nemesis.FlipLog, pick); err != nil { // and back
			t.Fatal(err)
		}
	}
	if _, closeLog, err = open(); err != nil {
		t.Fatalf("undone, it does not open: %v", err)
	}
	closeLog()
	if _, _, err := c.Damage(0, nemesis.FlipSnap, 1); err == nil {
		t.Error("a snapshot that is not there was damaged")
	}
	for pick := uint64(0); ; pick++ {
		what, sure, err := c.Damage(0, nemesis.CutFile, pick)
		if err != nil {
			t.Fatal(err)
		}
		if _, closeLog, err := open(); err == nil {
			closeLog()
			if sure {
				t.Errorf("%s: not noticed", what)
			}
			continue
		}
		break
	}
}

func TestNewestSnapshot(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"2-900-5", "2-1000-3", "3-7-1", "10-1-1", "11-5-5.tmp"} {
		path := filepath.Join(dir, "snapshots", name)
		if err := os.MkdirAll(path, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(path, "state.bin"), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got, err := newestSnapshot(dir)
	if err != nil || filepath.Base(filepath.Dir(got)) != "10-1-1" {
		t.Errorf("%s, %v", got, err)
	}
}
