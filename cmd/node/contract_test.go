package main

import (
	"encoding/json"
	"fmt"
	"math"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// shape checks that v is what the contract says: a name for each field, with its
// type. Types: s text, i integer, n number, b truth, t time (RFC 3339), l list of
// objects or of anything, o object. A field in parentheses is of the first object of
// a list, or of an object: "nodes(name:s)".
func shape(v any, want string) error {
	obj, ok := v.(map[string]any)
	if !ok {
		return fmt.Errorf("%v is no object", v)
	}
	for want = strings.TrimSpace(want); want != ""; want = strings.TrimSpace(want) {
		at := strings.IndexAny(want, ":(")
		name := want[:at]
		have, ok := obj[name]
		if !ok {
			return fmt.Errorf("no %s", name)
		}
		if want[at] == ':' {
			if err := typed(have, want[at+1]); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			want = want[at+2:]
			continue
		}
		end, depth := at+1, 1
		for ; depth > 0; end++ {
			depth += strings.Count(want[end:end+1], "(") - strings.Count(want[end:end+1], ")")
		}
		if list, ok := have.([]any); ok {
			if len(list) == 0 {
				return fmt.Errorf("%s is empty, so nothing can be said of it", name)
			}
			have = list[0]
		}
		if err := shape(have, want[at+1:end-1]); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		want = want[end:]
	}
	return nil
}

func typed(v any, kind byte) error {
	text, isText := v.(string)
	number, isNumber := v.(float64)
	ok := false
	switch kind {
	case 's':
		ok = isText
	case 'i':
		ok = isNumber && number == math.Trunc(number) && math.Abs(number) < 1<<53
	case 'n':
		ok = isNumber
	case 'b':
		_, ok = v.(bool)
	case 't':
		_, err := time.Parse(time.RFC3339, text)
		ok = isText && err == nil
	case 'l':
		_, ok = v.([]any)
	case 'o':
		_, ok = v.(map[string]any)
	}
	if !ok {
		return fmt.Errorf("%v (%T) is no %c", v, v, kind)
	}
	return nil
}

func TestShape(t *testing.T) {
	var v any
	if err := json.Unmarshal([]byte(`{"s":"x","i":3,"n":1.5,"b":true,"t":"2026-01-02T03:04:05Z","l":[{"s":"y"}],"o":{"i":1,"o":{"i":2}},"none":[]}`), &v); err != nil {
		t.Fatal(err)
	}
	for _, good := range []string{"s:s i:i n:n b:b t:t l:l o:o", "l(s:s) o(i:i o(i:i)) s:s"} {
		if err := shape(v, good); err != nil {
			t.Errorf("%s: %v", good, err)
		}
	}
	for _, bad := range []string{"x:s", "s:i", "n:i", "i:s", "s:t", "b:s", "o:l", "l:o", "l(i:i)", "o(o(i:s))", "none(s:s)"} {
		if shape(v, bad) == nil {
			t.Errorf("%s passes", bad)
		}
	}
}

// TestContract holds each command's JSON against what scripts rely on: not the
// names alone, the types too. Numbers that count are whole, times are RFC 3339,
// what ends in _us is microseconds.
func TestContract(t *testing.T) {
	f := testCluster(t)
	env := map[string]string{"BATON_ADDR": strings.Join(f.mgmts(), ","), "BATON_PKI": f.pki}
	dir := t.TempDir()
	const (
		endpoint = "endpoint(host:s user_port:i mgmt_port:i)"
		pause    = "pause_us(p50:i p99:i max:i)"
		report   = "moved:i failed:i lost:i duplicated:i " + pause + " took_us:i"
		wroteTo  = "epoch:i owner:s index:i"
		load     = "ops:i ops_per_s:n latency_us(p50:i p90:i p99:i max:i) errors:i cpu_s:n"
	)
	check := func(want string, args ...string) map[string]any {
		t.Helper()
		r := runBaton(env, "", append(args, "--json")...)
		line, _, _ := strings.Cut(r.stdout, "\n")
		var v any
		if err := json.Unmarshal([]byte(line), &v); err != nil || r.code != exitOK {
			t.Fatalf("baton %s: exit code %d, %v\n%s%s", strings.Join(args, " "), r.code, err, r.stdout, r.stderr)
		}
		if list, ok := v.([]any); ok && len(list) > 0 { // members, raft peers
			v = list[0]
		}
		if err := shape(v, want); err != nil {
			t.Errorf("baton %s: %v\n%s", strings.Join(args, " "), err, line)
		}
		obj, _ := v.(map[string]any)
		return obj
	}
	check("cluster_id:s leader:s term:i applied_index:i feature_level:i healthy:b quorum:i failure_tolerance:i "+
		"sessions(total:i attached:i migrating:i) byte_budget(used:i limit:i) nodes(name:s id:s incarnation:i roles:l voter:b state:s "+
		endpoint+" sessions:i attached:i lease_left_us:i applied_index:i fsync_p99_us:i version:s)", "status")
	check("id:s name:s incarnation:i zone:s voter:b gossip:s state:s "+endpoint+" last_contact_us:i version:s", "members")
	env["BATON_SECRET"] = check("id:s secret:s owner:s epoch:i", "session", "open", "--id", "s", "--node", "n1", "--ttl", "1h")["secret"].(string)
	check(wroteTo, "session", "put", "s", "k", "v")
	check("value:s found:b "+wroteTo, "session", "get", "s", "k")
	check("swapped:b "+wroteTo, "session", "cas", "s", "k", "v", "w")
	check("found:b "+wroteTo, "session", "delete", "s", "k")
	check("value:i "+wroteTo, "session", "incr", "s", "n")
	shown := check("id:s owner:s incarnation:i epoch:i attached:i ttl_s:i expires_in_s:i bytes:i next_seq:i acked_seq:i migration:i state_hash:s", "session", "show", "s")
	if left := shown["expires_in_s"].(float64); shown["ttl_s"] != 3600.0 || left <= 0 || left > 3600 {
		t.Errorf("an hour is %v s, of which %v are left", shown["ttl_s"], left)
	}
	check("id:s owner:s epoch:i", "session", "list")
	check("migration:i state:s from:s to:s epoch:i pause_us:i steps(state:s at:t took_us:i)", "migrate", "s", "--to", "n2")
	check("migration:i state:s from:s to:s epoch:i steps:l", "migrations")
	check("changes(epoch:i owner:s incarnation:i from:s index:i at:t reason:s by:s migration:i pause_us:i)", "session", "explain", "s")
	check(report, "drain", "n2")
	check("", "undrain", "n2")
	check(report, "rebalance")
	check("ok:b checked:i index:i hashes(node:s index:i hash:s) double_owned:i overlaps:i violations:l", "verify", "--once")
	check("id:s name:s voter:b leader:b", "raft", "peers")
	check("generations:l", "keys", "rotate")
	check("version:s commit:s feature_level:i wire:i", "version")
	check("id:s token:s expires_at:t expires_in_us:i", "join-token", "create")
	check("", "snapshot", "save", filepath.Join(dir, "snap"))
	check("", "snapshot", "inspect", filepath.Join(dir, "snap"))
	ledger := filepath.Join(dir, "ledger")
	for _, op := range loadOps {
		paced := check(load+" target:i seed:i", "bench", "--op", op, "--clients", "2", "--duration", "1s", "--target", "20", "--seed", "7", "--ledger", ledger)
		// A count, not a time: at most what was due in that second.
		if ops := paced["ops"].(float64); ops < 1 || ops > 20 || paced["target"] != 20.0 || paced["seed"] != 7.0 {
			t.Errorf("bench --op %s --target 20 made %v calls in a second: %v", op, ops, paced)
		}
	}
	check("ok:b lost:i duplicated:i", "verify", "--ledger", ledger)
	check(pause, "bench", "--op", "pivot", "--duration", "300ms", "--target", "200")
	for _, op := range partOps {
		check(load, "bench", "--op", op, "--duration", "20ms")
	}

	refused := runBaton(env, "", "session", "show", "nobody", "--json")
	if err := shape(map[string]any(refused.fields(t)), "error(code:s message:s retryable:b leader:s)"); err != nil || refused.code != exitRefused {
		t.Errorf("an error: exit code %d, %v", refused.code, err)
	}
	for _, op := range unpacedOps {
		if r := runBaton(env, "", "bench", "--self", "--op", op, "--target", "5"); r.code != exitUsage {
			t.Errorf("bench --op %s --target 5: exit code %d", op, r.code)
		}
	}
}
