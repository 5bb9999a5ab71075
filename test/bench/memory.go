package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/baton-cluster/baton/test/jepsen-lite/proc"
)

// againstMemory as -against is this repository's own nodes with a log that is
// kept nowhere. The ratio to them is what of the rate the disk leaves. No such
// thing can be switched on in the product: it is built here, with one line
// replaced.
const againstMemory = "memory"

const (
	diskFile = "cluster/logstore.go"
	diskLine = "	return WALDisk{}.Open(dir)\n"
	noDisk   = `	mem := raft.NewInmemStore()
	snaps, err := openSnapshots(dir)
	return mem, mem, snaps, io.NopCloser(nil), err
`
)

// buildMemory builds the node program without a disk under its log.
func buildMemory(ctx context.Context, root, dir, out string) error {
	source := filepath.Join(root, filepath.FromSlash(diskFile))
	text, err := os.ReadFile(source)
	if err != nil {
		return err
	}
	if strings.Count(string(text), diskLine) != 1 {
		return fmt.Errorf("%s does not hold the line that -against memory replaces", diskFile)
	}
	mutant := filepath.Join(dir, "logstore.go")
	if err := os.WriteFile(mutant, []byte(strings.Replace(string(text), diskLine, noDisk, 1)), 0o600); err != nil {
		return err
	}
	overlay := filepath.Join(dir, "overlay.json")
	what, err := json.Marshal(map[string]map[string]string{"Replace": {source: mutant}})
	if err != nil {
		return err
	}
	if err := os.WriteFile(overlay, what, 0o600); err != nil {
		return err
	}
	return proc.BuildProgram(ctx, root, "./cmd/node", out, overlay)
}
