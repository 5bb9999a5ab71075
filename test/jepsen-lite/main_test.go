package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/baton-cluster/baton"

	"github.com/baton-cluster/baton/test/jepsen-lite/history"
	"github.com/baton-cluster/baton/test/jepsen-lite/nemesis"
	"github.com/baton-cluster/baton/test/jepsen-lite/proc"
	"github.com/baton-cluster/baton/test/mutants"
)

// tryMutant runs jepsen-lite on a binary and returns its exit code and report.
// self, where set, is another build of jepsen-lite to do it with.
func tryMutant(t *testing.T, self, bin, faults, seed, duration string) (int, report) {
	t.Helper()
	var out, errs bytes.Buffer
	args := []string{"--node", bin, "--faults", faults, "--seed", seed, "--duration", duration, "--json"}
	var code int
	if self == "" {
		code = program(t.Context(), args, &out, &errs)
	} else {
		cmd := exec.CommandContext(t.Context(), self, args...)
		cmd.Stdout, cmd.Stderr = &out, &errs
		_ = cmd.Run() // its exit code says how it went
		code = cmd.ProcessState.ExitCode()
	}
	var r report
	if code != exitOK && code != exitViolation {
		t.Fatalf("exit %d: %s", code, errs.String())
	}
	if err := json.Unmarshal(out.Bytes(), &r); err != nil {
		t.Fatalf("%v: %s", err, out.String())
	}
	if r.OK != (code == exitOK) {
		t.Fatalf("exit %d, ok is %v", code, r.OK)
	}
	return code, r
}

// seedsMax is how many runs a mutant gets to show itself in: faults hit by chance.
const seedsMax = 3

// TestMutants: the product as it is passes, and the same source with one rule
// taken out exits 5.
func TestMutants(t *testing.T) {
	if os.Getenv("BATON_MUTANTS") == "" || raceDetector {
		t.Skip("builds and runs clusters for minutes: make mutants")
	}
	root, err := proc.Root()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	var all []string
	var visible []mutants.Mutant
	for _, m := range mutants.All {
		if m.Nemesis != "" {
			visible = append(visible, m)
			all = append(all, m.Nemesis)
		}
	}
	good := filepath.Join(dir, "node")
	if err := buildNode(t.Context(), root, good, ""); err != nil {
		t.Fatal(err)
	}
	code, r := tryMutant(t, "", good, strings.Join(all, ","), "1", "20s")
	if code != exitOK {
		t.Fatalf("the product itself: %v", r.Violations)
	}
	t.Logf("the product: %d operations, %d sessions, %d epochs, no violation", r.Ops, r.Sessions, r.Epochs)
	for _, m := range visible {
		t.Run(m.Name, func(t *testing.T) {
			overlay, err := m.Overlay(root, dir)
			if err != nil {
				t.Fatal(err)
			}
			self, bin := "", filepath.Join(dir, "node-"+m.Name)
			if m.Client {
				self, bin = filepath.Join(dir, "jepsen-"+m.Name), good
				err = proc.BuildProgram(t.Context(), ".", ".", self, overlay)
			} else {
				err = buildNode(t.Context(), root, bin, overlay)
			}
			if err != nil {
				t.Fatal(err)
			}
			for seed := 1; seed <= seedsMax; seed++ {
				code, r := tryMutant(t, self, bin, m.Nemesis, strconv.Itoa(seed), "15s")
				if code == exitViolation {
					t.Logf("%s: caught with seed %d: %v", m.Fault, seed, r.Violations[0])
					return
				}
			}
			t.Errorf("survives: %s", m.Fault)
		})
	}
}

func TestUsage(t *testing.T) {
	for _, args := range [][]string{
		{"--duration", "1ms"}, {"--nodes", "0"}, {"--clients", "51"}, {"--slots", "0"}, {"--faults", "nonsense"}, {"--no-such"}, {"word"},
	} {
		var out, errs bytes.Buffer
		if code := program(t.Context(), args, &out, &errs); code != exitUsage || errs.Len() == 0 || out.Len() > 0 {
			t.Errorf("%v: exit %d, %q, %q", args, code, out.String(), errs.String())
		}
	}
	var out, errs bytes.Buffer
	if code := program(t.Context(), []string{"--help"}, &out, &errs); code != exitOK || !strings.Contains(errs.String(), "-seed") {
		t.Errorf("--help: exit %d, %s", code, errs.String())
	}
	if code := program(t.Context(), []string{"--node", "/no/such/file", "-q", "--duration", "1s"}, &out, &errs); code != exitFailed {
		t.Errorf("a missing binary: exit %d", code)
	}
}

func TestParse(t *testing.T) {
	o, asJSON, err := parse([]string{"--json", "--faults", "kill,pause", "-q"}, &bytes.Buffer{})
	if err != nil || !asJSON || len(o.kinds) != 2 || o.seed == 0 || o.progress != nil {
		t.Fatalf("%+v %v", o, err)
	}
	if o, _, _ := parse([]string{"--faults", "none"}, &bytes.Buffer{}); len(nemesis.Plan(1, o.duration, warm, 3, o.kinds)) != 0 {
		t.Error("faults none plans faults")
	}
}

func TestOutcome(t *testing.T) {
	for err, want := range map[error]history.Outcome{
		nil:                       history.OK,
		context.DeadlineExceeded:  history.Unknown,
		errors.New("anything"):    history.Unknown,
		baton.ErrDisplaced:        history.Unknown,
		baton.ErrDeadlineExceeded: history.Unknown,
	} {
		if got := outcome(err); got != want {
			t.Errorf("%v is %s, want %s", err, got, want)
		}
	}
}

func TestElement(t *testing.T) {
	for arg, want := range map[string]string{"a": "a", "a,b": "b", "a,b,c": "c"} {
		if got := element(&history.Op{Arg: arg}); got != want {
			t.Errorf("%s adds %s, want %s", arg, got, want)
		}
	}
}
