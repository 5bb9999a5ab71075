package baton_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/baton-cluster/baton"
)

// TestExamplesRunAsREADMEShowsThem builds and runs the two programs of README,
// and checks that README shows them to the letter.
func TestExamplesRunAsREADMEShowsThem(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	must(t, err)
	dir := t.TempDir()
	for _, name := range []string{"server", "client"} {
		src, err := os.ReadFile(filepath.Join("examples", name, "main.go"))
		must(t, err)
		_, body, _ := bytes.Cut(src, []byte("package main\n"))
		if !bytes.Contains(readme, bytes.TrimSpace(body)) {
			t.Errorf("README.md does not show examples/%s/main.go as it is", name)
		}
		out, err := exec.Command("go", "build", "-o", filepath.Join(dir, name), "./examples/"+name).CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	pki := filepath.Join(dir, "pki")
	must(t, baton.PKIInit(pki))
	must(t, baton.PKIIssue(pki, "n1", []string{"127.0.0.1"}))
	user := freeAddr(t)
	server := exec.Command(filepath.Join(dir, "server"), "n1", user, freeAddr(t), pki, filepath.Join(dir, "data"))
	server.Stderr = os.Stderr
	must(t, server.Start())
	t.Cleanup(func() {
		_ = server.Process.Kill()
		_ = server.Wait()
	})
	out, err := exec.CommandContext(testContext(t), filepath.Join(dir, "client"), user, pki).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if !strings.HasPrefix(string(out), "votes: 1; pushed: ada has 1; served by n1") {
		t.Fatalf("the client said %q", out)
	}
	must(t, server.Process.Signal(os.Interrupt))
	must(t, server.Wait())
}

// TestMigrateExample runs the program that moves a session under its own calls.
func TestMigrateExample(t *testing.T) {
	bin := filepath.Join(t.TempDir(), "migrate")
	if out, err := exec.Command("go", "build", "-o", bin, "./examples/migrate").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	out, err := exec.CommandContext(testContext(t), bin, "4").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	text := string(out)
	if strings.Count(text, "moved from ") != 4 || strings.Contains(text, "gap true") || !strings.Contains(text, "4 moves, ") || !strings.Contains(text, " bytes in one stream, ") {
		t.Fatalf("the example said %q", text)
	}
}
