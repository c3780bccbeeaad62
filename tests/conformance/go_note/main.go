// A second opinion on signed heads and proofs: Go's own note and tlog packages read what is given on stdin.
//
// It prints "ok" when every part of the JSON document verifies, and says what does not on stderr, with exit code 1.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// treeName is the first line that tlog.ParseTree asks for; a checkpoint has the name of its log there.
const treeName = "go.sum database tree"

type record struct {
	Data  []byte
	Index int64
	Path  []tlog.Hash
}

type growth struct {
	Old  string
	Path []tlog.Hash
}

type document struct {
	Key     string
	Head    string
	Records []record
	Growths []growth
	// A tree inside the log: its own size and root are told, not signed.
	Session *struct {
		Size    int64
		Root    tlog.Hash
		Records []record
	}
	// Secret and Text are signed, to be opened by the other side.
	Secret string
	Text   string
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run() error {
	var doc document
	if err := json.NewDecoder(os.Stdin).Decode(&doc); err != nil {
		return err
	}
	if doc.Secret != "" {
		return sign(doc)
	}
	head, err := open(doc.Head, doc.Key)
	if err != nil {
		return fmt.Errorf("head: %w", err)
	}
	if err := checkRecords(doc.Records, head); err != nil {
		return err
	}
	for number, item := range doc.Growths {
		old, err := open(item.Old, doc.Key)
		if err != nil {
			return fmt.Errorf("old head %d: %w", number, err)
		}
		if err := tlog.CheckTree(item.Path, head.N, head.Hash, old.N, old.Hash); err != nil {
			return fmt.Errorf("growth %d: %w", number, err)
		}
	}
	if doc.Session != nil {
		if err := checkRecords(doc.Session.Records, tlog.Tree{N: doc.Session.Size, Hash: doc.Session.Root}); err != nil {
			return fmt.Errorf("session: %w", err)
		}
	}
	fmt.Println("ok")
	return nil
}

func checkRecords(records []record, tree tlog.Tree) error {
	for number, item := range records {
		if err := tlog.CheckRecord(item.Path, tree.N, tree.Hash, item.Index, tlog.RecordHash(item.Data)); err != nil {
			return fmt.Errorf("record %d: %w", number, err)
		}
	}
	return nil
}

func open(text, key string) (tlog.Tree, error) {
	verifier, err := note.NewVerifier(key)
	if err != nil {
		return tlog.Tree{}, err
	}
	opened, err := note.Open([]byte(text), note.VerifierList(verifier))
	if err != nil {
		return tlog.Tree{}, err
	}
	origin, rest, _ := strings.Cut(opened.Text, "\n")
	if origin != verifier.Name() {
		return tlog.Tree{}, fmt.Errorf("the head is of %q, the key of %q", origin, verifier.Name())
	}
	return tlog.ParseTree([]byte(treeName + "\n" + rest))
}

func sign(doc document) error {
	signer, err := note.NewSigner(doc.Secret)
	if err != nil {
		return err
	}
	signed, err := note.Sign(&note.Note{Text: doc.Text}, signer)
	if err != nil {
		return err
	}
	_, err = os.Stdout.Write(signed)
	return err
}
