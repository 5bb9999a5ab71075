package main

import (
	"encoding/json"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/baton-cluster/baton/test/mutants"
)

// buildMutant builds the product with a rule taken out, through an overlay: the
// source itself, and so the product, knows nothing of it.
func buildMutant(t *testing.T, name string) string {
	t.Helper()
	m, ok := mutants.Find(name)
	if !ok {
		t.Fatalf("there is no mutant %s", name)
	}
	root, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	overlay, err := m.Overlay(root, dir)
	if err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(dir, name)
	cmd := exec.Command("go", "build", "-overlay", overlay, "-o", bin, "./cmd/node")
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building %s: %v\n%s", name, err, out)
	}
	return bin
}

// mutantSeeds is how many demos a mutant gets to show itself in: the faults hit
// by chance.
const mutantSeeds = 3

// TestDemoFindsMutants: with one rule of exactly-once or of single ownership
// taken out of the nodes, the demo exits 5, and its counts say so. That the
// product itself passes is what the demo shows.
func TestDemoFindsMutants(t *testing.T) {
	if testing.Short() || raceDetector {
		t.Skip("builds and runs clusters; the processes are not under the race detector")
	}
	for _, name := range []string{"dedup", "stale-owner"} {
		t.Run(name, func(t *testing.T) {
			bin := buildMutant(t, name)
			for seed := 1; seed <= mutantSeeds; seed++ {
				r := runBaton(nil, "", "demo", "--json", "-q", "--baton", bin, "--seed", strconv.Itoa(seed),
					"--duration", "30s", "--rolling-restart=false", "--min-acked", "1000", "--min-pivots", "20")
				var d demoJSON
				if err := json.Unmarshal([]byte(r.stdout), &d); err != nil {
					t.Fatalf("exit code %d: %v: %s%s", r.code, err, r.stdout, r.stderr)
				}
				if d.OK != (r.code == exitOK) {
					t.Fatalf("exit code %d, ok is %v", r.code, d.OK)
				}
				// Refused: a client was told that another had displaced it.
				if r.code == exitViolation && d.Lost+d.Duplicated+d.DoubleOwned+d.StaleReads+d.Refused > 0 {
					t.Logf("seed %d: lost %d, duplicated %d, double owned %d, stale reads %d, refused %d: %v", seed, d.Lost, d.Duplicated, d.DoubleOwned, d.StaleReads, d.Refused, d.Violations[0])
					return
				}
				t.Logf("seed %d: exit code %d, nothing to see: %v", seed, r.code, d.Violations)
			}
			t.Errorf("the demo did not find %s", name)
		})
	}
}
