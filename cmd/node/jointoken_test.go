package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/baton-cluster/baton"
)

// TestJoinTokenCommands: a process that has a token and no certificate becomes a
// node, and is one when it is started again without the token; a script learns
// why another does not.
func TestJoinTokenCommands(t *testing.T) {
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
	created := run(exitOK, "join-token", "create", "--name", "n4", "--ttl", "5m", "--json").fields(t)
	if ends, err := time.Parse(time.RFC3339, created["expires_at"].(string)); err != nil || created["state"] != "pending" || created["name"] != "n4" ||
		created["expires_in_us"].(float64) > 300e6 || ends.After(time.Now().Add(6*time.Minute)) {
		t.Errorf("created %v: %v", created, err)
	}
	file, own := filepath.Join(t.TempDir(), "token"), filepath.Join(t.TempDir(), "pki")
	if err := os.WriteFile(file, []byte(created["token"].(string)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	ports, err := takePorts(0)
	if err != nil {
		t.Fatal(err)
	}
	start := func(name, pki string, port int) []string {
		return []string{
			"start", "--name", name, "--data", filepath.Join(f.dir, name), "--user-addr", hostPort(ports[port].user), "--mgmt-addr", hostPort(ports[port].mgmt),
			"--pki", pki, "--join", strings.Join(f.mgmts(), ","), "--profile", "local",
		}
	}
	serves := func(s baton.NodeStatus) bool { return s.Reachable && s.State == "active" }
	n := &fleetNode{name: "n4", user: hostPort(ports[0].user), mgmt: hostPort(ports[0].mgmt), log: filepath.Join(f.dir, "n4.log")}
	n.args = append(start("n4", own, 0), "--join-token-file", file)
	if err := f.startNode(n); err != nil {
		t.Fatal(err)
	}
	f.nodes = append(f.nodes, n)
	f.awaitNode(t, "n4", "it has joined", serves)
	if list := run(exitOK, "join-token", "list", "--json").fields(t); list["state"] != "used" || list["used_by"] != "n4" || list["id"] != created["id"] {
		t.Errorf("listed %v", list)
	}
	if r := run(exitOK, "join-token", "list"); strings.Contains(r.stdout, created["token"].(string)) {
		t.Errorf("the list tells the secret: %s", r.stdout)
	}

	// The token is used, and its file may go.
	again := runBaton(env, "", append(start("n5", filepath.Join(t.TempDir(), "pki"), 1), "--join-token-file", file, "--json")...)
	if again.code != exitRefused || again.fields(t)["error"].(map[string]any)["code"] != "token_used" {
		t.Errorf("a second use: exit code %d: %s%s", again.code, again.stdout, again.stderr)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	n.proc.kill()
	<-n.proc.done
	if err := f.startNode(n); err != nil {
		t.Fatal(err)
	}
	f.awaitNode(t, "n4", "it is back", serves)

	// From the environment; and revoked.
	env["BATON_JOIN_TOKEN"] = strings.TrimSpace(run(exitOK, "join-token", "create").stdout)
	pending := run(exitOK, "join-token", "list", "--json").stdout
	lines := strings.Split(strings.TrimSpace(pending), "\n")
	at := slices.IndexFunc(lines, func(l string) bool { return strings.Contains(l, `"state":"pending"`) })
	id := result{stdout: lines[at]}.fields(t)["id"].(string)
	if r := run(exitOK, "join-token", "revoke", id, "--json").fields(t); r["state"] != "revoked" {
		t.Errorf("revoked: %v", r)
	}
	gone := runBaton(env, "", append(start("n5", filepath.Join(t.TempDir(), "pki"), 1), "--json")...)
	if gone.code != exitRefused || gone.fields(t)["error"].(map[string]any)["code"] != "token_revoked" {
		t.Errorf("a revoked token: exit code %d: %s%s", gone.code, gone.stdout, gone.stderr)
	}
	run(exitRefused, "join-token", "revoke", strings.Repeat("00", 16), "--json")
}
