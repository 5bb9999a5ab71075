package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// runAsBaton makes the test binary be the product: for the nodes that a fleet
// starts.
const runAsBaton = "TEST_RUN_AS_BATON"

func TestMain(m *testing.M) {
	if os.Getenv(runAsBaton) != "" {
		main()
		return
	}
	testscript.Main(m, map[string]func(){"baton": main})
}

// TestScripts runs the command line as a user does: see testdata.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits": exits,
			"json":  jsonHas,
		},
	})
}

// exits CODE COMMAND…: the command must end with exactly this code.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND…")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			ts.Fatalf("%v", err)
		}
		got = exit.ExitCode()
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// json PATH [VALUE]: the first line of stdout is an object that has PATH
// (a.b.c), and there VALUE.
func jsonHas(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 || len(args) > 2 {
		ts.Fatalf("usage: json PATH [VALUE]")
	}
	line, _, _ := strings.Cut(ts.ReadFile("stdout"), "\n")
	var doc any
	if err := json.Unmarshal([]byte(line), &doc); err != nil {
		ts.Fatalf("stdout is not JSON: %v: %s", err, line)
	}
	for _, key := range strings.Split(args[0], ".") {
		obj, ok := doc.(map[string]any)
		if !ok {
			ts.Fatalf("no %s in %s", args[0], line)
		}
		if doc, ok = obj[key]; !ok {
			ts.Fatalf("no %s in %s", args[0], line)
		}
	}
	if len(args) == 2 {
		got, err := json.Marshal(doc)
		ts.Check(err)
		if s, ok := doc.(string); ok {
			got = []byte(s)
		}
		if string(got) != args[1] {
			ts.Fatalf("%s is %s, want %s", args[0], got, args[1])
		}
	}
}

// result is what one command line came to.
type result struct {
	code           int
	stdout, stderr string
}

// baton runs one command line in this process.
func runBaton(env map[string]string, stdin string, args ...string) result {
	var out, errs bytes.Buffer
	p := &program{
		Stdin: strings.NewReader(stdin), Stdout: &out, Stderr: &errs,
		Env: func(k string) (string, bool) { v, ok := env[k]; return v, ok },
	}
	code := p.Run(context.Background(), args)
	return result{code, out.String(), errs.String()}
}

// fields decodes the command's JSON.
func (r result) fields(t *testing.T) map[string]any {
	t.Helper()
	var out map[string]any
	if err := json.Unmarshal([]byte(r.stdout), &out); err != nil {
		t.Fatalf("stdout is not one JSON object: %v\n%s%s", err, r.stdout, r.stderr)
	}
	return out
}

// testCluster runs three nodes for a test, each with args beside its own.
func testCluster(t *testing.T, args ...string) *fleet {
	t.Helper()
	if testing.Short() {
		t.Skip("starts three nodes")
	}
	t.Setenv(runAsBaton, "1")
	f, err := newFleet("", t.TempDir(), 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.close)
	for _, n := range f.nodes {
		n.args = append(n.args, args...)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*formWithin)
	defer cancel()
	if err := f.run(ctx); err != nil {
		t.Fatal(err)
	}
	return f
}

// TestCommandsOnACluster walks through every command that asks a cluster.
func TestCommandsOnACluster(t *testing.T) {
	f := testCluster(t)
	env := map[string]string{"BATON_ADDR": strings.Join(f.mgmts(), ","), "BATON_PKI": f.pki}
	run := func(want int, args ...string) result {
		t.Helper()
		r := runBaton(env, "", args...)
		if r.code != want {
			t.Fatalf("baton %s: exit code %d, want %d\n%s%s", strings.Join(args, " "), r.code, want, r.stdout, r.stderr)
		}
		return r
	}
	is := func(r result, key string, want any) {
		t.Helper()
		if got := r.fields(t)[key]; got != want {
			t.Errorf("%s is %v, want %v: %s", key, got, want, r.stdout)
		}
	}

	is(run(exitOK, "status", "--json", "--wait-healthy", "30s"), "healthy", true)
	run(exitOK, "status")
	run(exitOK, "members", "--json")
	run(exitOK, "raft", "peers")

	opened := run(exitOK, "session", "open", "--id", "s1", "--node", "n2", "--json")
	is(opened, "owner", "n2")
	env["BATON_SECRET"] = opened.fields(t)["secret"].(string)
	run(exitOK, "session", "put", "s1", "k", "v", "--json")
	got := run(exitOK, "session", "get", "s1", "k", "--json")
	is(got, "value", "v")
	is(got, "found", true)
	is(got, "owner", "n2")
	is(run(exitOK, "session", "get", "s1", "other", "--json"), "found", false)
	is(run(exitOK, "session", "cas", "s1", "k", "v", "w", "--json"), "swapped", true)
	is(run(exitFailed, "session", "cas", "s1", "k", "v", "x", "--json"), "swapped", false)
	is(run(exitOK, "session", "incr", "s1", "n", "--json"), "value", 1.0)
	is(run(exitOK, "session", "incr", "s1", "n", "41", "--json"), "value", 42.0)
	is(run(exitOK, "session", "delete", "s1", "k", "--json"), "found", true)
	show := run(exitOK, "session", "show", "s1", "--json")
	is(show, "owner", "n2")
	run(exitOK, "session", "list", "--owner", "n2", "--json")

	moved := run(exitOK, "migrate", "s1", "--to", "n3", "--json")
	is(moved, "state", "Completed")
	is(moved, "to", "n3")
	refused := run(exitRefused, "migrate", "s1", "--to", "n3", "--json")
	if e := refused.fields(t)["error"].(map[string]any); e["code"] != "same_node" {
		t.Errorf("moving to where it is: %v", e)
	}
	run(exitRefused, "migrate", "nobody", "--to", "n3", "--json")
	run(exitOK, "migrations", "--json")
	run(exitOK, "connections")
	run(exitOK, "connections", "--node", "n1", "--json")
	run(exitRefused, "connections", "move", "999999", "--node", "n1", "--to", "n2", "--json")
	run(exitRefused, "migration", "abort", "1", "--json")
	story := run(exitOK, "session", "explain", "s1", "--json")
	if n := len(story.fields(t)["changes"].([]any)); n != 2 {
		t.Errorf("explain has %d changes, want 2: %s", n, story.stdout)
	}

	drained := run(exitOK, "drain", "n3", "--deadline", "20s", "--json")
	is(drained, "lost", 0.0)
	is(drained, "remaining", 0.0)
	is(drained, "state", "done")
	is(drained, "moved", 1.0)
	jobs := run(exitOK, "jobs", "--limit", "1", "--json")
	is(jobs, "kind", "drain")
	is(jobs, "node", "n3")
	is(jobs, "state", "done")
	run(exitOK, "jobs")
	id := strconv.FormatFloat(jobs.fields(t)["job"].(float64), 'f', 0, 64)
	run(exitRefused, "job", "pause", id, "--json")
	run(exitRefused, "job", "cancel", "1", "--json")
	run(exitOK, "undrain", "n3", "--json")
	detached := run(exitOK, "drain", "n1", "--detach", "--max-pause", "20ms", "--rate", "5", "--json")
	is(detached, "state", "running")
	is(detached, "max_pause_us", 20_000.0)
	run(exitOK, "drain", "n1", "--cancel", "--json")
	is(run(exitOK, "jobs", "--limit", "1", "--json"), "kind", "drain")
	dry := run(exitOK, "rebalance", "--dry-run", "--json")
	is(dry, "dry_run", true)
	is(dry, "job", 0.0)
	done := run(exitOK, "rebalance", "--max-moves", "5", "--json")
	is(done, "planned", dry.fields(t)["planned"])
	is(done, "lost", 0.0)
	run(exitOK, "rebalance", "--dry-run")
	is(run(exitOK, "session", "get", "s1", "n", "--json"), "value", "42")

	rotated := run(exitOK, "keys", "rotate", "--kind", "ticket,seal", "--json").fields(t)["generations"].([]any)
	if last := rotated[len(rotated)-1].(map[string]any); last["generation"] != 2.0 || last["drops_in_us"] != -1.0 || len(last["in_use"].([]any)) != 2 {
		t.Errorf("after a rotation: %v", rotated)
	}
	if nodes := run(exitOK, "keys", "show", "--json").fields(t)["nodes"].([]any); len(nodes) != 3 {
		t.Errorf("keys show tells of %v", nodes)
	}
	run(exitOK, "keys", "show")

	is(run(exitOK, "verify", "--json"), "ok", true)
	ledger := filepath.Join(t.TempDir(), "ledger")
	bench := run(exitOK, "bench", "--op", "mixed", "--clients", "4", "--conns", "2", "--duration", "300ms", "--ledger", ledger, "--json")
	is(bench, "errors", 0.0)
	pivots := run(exitOK, "bench", "--op", "pivot", "--clients", "3", "--duration", "300ms", "--json")
	is(pivots, "failed", 0.0)
	parts := pivots.fields(t)["parts"].(map[string]any)
	for _, part := range []string{"freeze_us", "transfer_us", "commit_us", "client_us"} {
		if parts[part] == nil {
			t.Errorf("bench --op pivot tells nothing of %s: %s", part, pivots.stdout)
		}
	}
	is(run(exitOK, "bench", "--op", "pivot", "--duration", "100ms", "--json"), "clients", 1.0)
	delete(env, "BATON_SECRET")
	checked := run(exitOK, "verify", "--ledger", ledger, "--json")
	is(checked, "lost", 0.0)
	is(checked, "duplicated", 0.0)

	wrong := runBaton(env, strings.Repeat("00", secretBytes), "session", "get", "s1", "n", "--json")
	if wrong.code != exitRefused {
		t.Errorf("a wrong secret: exit code %d: %s%s", wrong.code, wrong.stdout, wrong.stderr)
	} else if e := wrong.fields(t)["error"].(map[string]any); e["code"] != "bad_secret" {
		t.Errorf("a wrong secret: %v", e)
	}
	env["BATON_SECRET"] = opened.fields(t)["secret"].(string)
	run(exitOK, "session", "close", "s1", "--json")
	run(exitRefused, "session", "show", "s1", "--json")
}

// TestVerifyFindsWhatALedgerSays: a ledger that claims more than the cluster
// holds is a violation.
func TestVerifyFindsWhatALedgerSays(t *testing.T) {
	f := testCluster(t)
	env := map[string]string{"BATON_ADDR": strings.Join(f.mgmts(), ","), "BATON_PKI": f.pki}
	opened := runBaton(env, "", "session", "open", "--id", "s", "--json")
	if opened.code != exitOK {
		t.Fatalf("%+v", opened)
	}
	l := newLedger()
	l.addKey(SessionKey{Session: "s", Secret: opened.fields(t)["secret"].(string)})
	l.addOp(Op{Session: "s", Kind: kindIncr, EndUS: 1, Acked: true, Value: 1})
	path := filepath.Join(t.TempDir(), "ledger")
	if err := l.save(path); err != nil {
		t.Fatal(err)
	}
	r := runBaton(env, "", "verify", "--ledger", path, "--json")
	if r.code != exitViolation || r.fields(t)["lost"] != 1.0 || r.fields(t)["ok"] != false {
		t.Errorf("exit code %d: %s%s", r.code, r.stdout, r.stderr)
	}
	// What cannot be read again is not lost.
	r = runBaton(env, "", "verify", "--ledger", path, "--user-addr", freeUDP(t), "--timeout", "1s", "--json")
	if r.code != exitNoCluster {
		t.Errorf("without a way to the sessions: exit code %d: %s%s", r.code, r.stdout, r.stderr)
	}
}

// freeUDP is an address at which nobody answers, as this test holds it.
func freeUDP(t *testing.T) string {
	t.Helper()
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c.LocalAddr().String()
}

// TestAttachEndsWithItsSession: who follows a session is told that it has ended, and why.
func TestAttachEndsWithItsSession(t *testing.T) {
	f := testCluster(t)
	env := map[string]string{"BATON_ADDR": strings.Join(f.mgmts(), ","), "BATON_PKI": f.pki}
	opened := runBaton(env, "", "session", "open", "--id", "s", "--json")
	if opened.code != exitOK {
		t.Fatalf("%+v", opened)
	}
	env["BATON_SECRET"] = opened.fields(t)["secret"].(string)
	out, in := io.Pipe()
	code := make(chan int, 1)
	go func() {
		p := &program{Stdout: in, Stderr: io.Discard, Env: func(k string) (string, bool) { v, ok := env[k]; return v, ok }}
		code <- p.Run(context.Background(), []string{"session", "attach", "s", "--json"})
		_ = in.Close()
	}()
	lines := bufio.NewScanner(out)
	if !lines.Scan() || !strings.Contains(lines.Text(), `"attached"`) {
		t.Fatalf("the first line is %q", lines.Text())
	}
	var last string
	closed := make(chan result, 1)
	go func() { closed <- runBaton(env, "", "session", "close", "s") }()
	for lines.Scan() {
		last = lines.Text()
	}
	if r := <-closed; r.code != exitOK {
		t.Errorf("%+v", r)
	}
	if c := <-code; c != exitRefused || !strings.Contains(last, `"error"`) {
		t.Errorf("exit code %d, the last line is %s", c, last)
	}
}

// TestWrongUsage: who got the command line wrong is told what would be right.
func TestWrongUsage(t *testing.T) {
	for line, want := range map[string]string{
		"session get s":   "Usage: baton session get ID KEY",
		"status --addres": "Usage: baton status",
		"statsu":          "do you mean status?",
		"session opne":    "do you mean open?",
		"session":         "Run 'baton session --help'",
	} {
		r := runBaton(nil, "", strings.Fields(line)...)
		if r.code != exitUsage || !strings.Contains(r.stderr, want) {
			t.Errorf("baton %s: exit code %d: %s", line, r.code, r.stderr)
		}
	}
}

func TestSettingsLayers(t *testing.T) {
	file := filepath.Join(t.TempDir(), "baton.yaml")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// An address that cannot be one shows which layer was used.
	addr := func(env map[string]string, args ...string) string {
		t.Helper()
		r := runBaton(env, "", append([]string{"status", "--config", file, "--json"}, args...)...)
		if r.code != exitUsage {
			t.Fatalf("exit code %d: %s%s", r.code, r.stdout, r.stderr)
		}
		return r.fields(t)["error"].(map[string]any)["message"].(string)
	}
	write("addr: [file1, file2]\nname: n1\n")
	env := map[string]string{"BATON_ADDR": "env"}
	if got := addr(nil); !strings.Contains(got, "file1") || !strings.Contains(got, "file2") {
		t.Errorf("from the file: %s", got)
	}
	if got := addr(env); !strings.Contains(got, `"env"`) || strings.Contains(got, "file1") {
		t.Errorf("the environment is above the file: %s", got)
	}
	if got := addr(env, "--addr", "flag"); !strings.Contains(got, `"flag"`) || strings.Contains(got, `"env"`) {
		t.Errorf("a flag is above the environment: %s", got)
	}
	write("adr: x\nwaitheathy: 3s\n")
	if got := addr(nil); !strings.Contains(got, "adr") || !strings.Contains(got, "waitheathy") {
		t.Errorf("all typing mistakes must be named: %s", got)
	}
	write("timeout: soon\n")
	if got := addr(map[string]string{"BATON_WATCH": "perhaps"}); !strings.Contains(got, "timeout") || !strings.Contains(got, "BATON_WATCH") {
		t.Errorf("all faults must be named: %s", got)
	}
}

func TestSecretSources(t *testing.T) {
	hexa := strings.Repeat("0a", secretBytes)
	file := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(file, []byte(hexa+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	read := func(env map[string]string, stdin, flag string) error {
		p := &program{Stdin: strings.NewReader(stdin), Env: func(k string) (string, bool) { v, ok := env[k]; return v, ok }}
		_, err := p.secret(flag)
		return err
	}
	for name, err := range map[string]error{
		"file":        read(nil, "", file),
		"environment": read(map[string]string{"BATON_SECRET": hexa}, "", ""),
		"stdin":       read(nil, hexa+"\n", ""),
		"stdin by -":  read(map[string]string{"BATON_SECRET": "no"}, hexa, "-"),
	} {
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, err := range map[string]error{
		"nothing":     read(nil, "", ""),
		"no hex":      read(nil, "secret", ""),
		"too short":   read(nil, "0a", ""),
		"no file":     read(nil, "", file+".not"),
		"bad setting": read(map[string]string{"BATON_SECRET": "no"}, hexa, ""),
	} {
		if exitCode(err) != exitUsage {
			t.Errorf("%s: %v is no usage error", name, err)
		}
	}
}

// TestEveryCommandHasAnExample: part of the command line's contract.
func TestEveryCommandHasAnExample(t *testing.T) {
	p := &program{Env: os.LookupEnv}
	var walk func(path string, args []string)
	walk = func(path string, args []string) {
		r := runBaton(nil, "", append(args, "--help")...)
		if r.code != exitOK || !strings.Contains(r.stdout, "Examples:") {
			t.Errorf("%s --help: exit code %d, no example", path, r.code)
		}
	}
	for _, c := range p.root().Commands() {
		walk(c.CommandPath(), []string{c.Name()})
		for _, s := range c.Commands() {
			walk(s.CommandPath(), []string{c.Name(), s.Name()})
		}
	}
}

func TestSecondSignalClosesAgain(t *testing.T) {
	signals := make(chan os.Signal)
	p := &program{Signals: signals}
	ctx, stop := p.withSignals(context.Background())
	defer stop()
	signals <- os.Interrupt
	<-ctx.Done()
	select {
	case <-p.again:
		t.Fatal("closed by the first signal")
	default:
	}
	signals <- os.Interrupt
	select {
	case <-p.again:
	case <-time.After(10 * time.Second):
		t.Fatal("not closed by the second signal")
	}
}
