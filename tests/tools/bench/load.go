// The load and the upstream of the gateway's benchmark: raw sockets, so that both cost little beside a gateway.
//
//	load upstream PORT   answers calls: JSON, a stream of 20 events, or a slow stream
//	load call            puts the load on a gateway that standard input tells; prints what it measured as JSON
//
// It knows just enough of HTTP/1.1 for what the benchmark sends. Never a client or a server for anything else.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	events     = 20
	slowEvents = 40
	slowPause  = 250 * time.Millisecond
	usage      = `{"prompt_tokens":12,"completion_tokens":20,"total_tokens":32}`
	streamHead = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
	streamEnd  = "0\r\n\r\n"
)

var headEnd = []byte("\r\n\r\n")

func main() {
	if len(os.Args) == 3 && os.Args[1] == "upstream" {
		upstream(os.Args[2])
	} else if len(os.Args) == 2 && os.Args[1] == "call" {
		var load Load
		check(json.NewDecoder(os.Stdin).Decode(&load))
		check(json.NewEncoder(os.Stdout).Encode(load.run()))
	} else {
		check(fmt.Errorf("usage: load upstream PORT | load call"))
	}
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// The upstream.

func httpChunk(data string) string {
	return fmt.Sprintf("%x\r\n%s\r\n", len(data), data)
}

// event is one of a stream, as model servers send it: the last has the usage, or each of a slow stream.
func event(number int, withUsage bool) string {
	choices, used := fmt.Sprintf(`[{"index":0,"delta":{"content":" word%d"},"finish_reason":null}]`, number), "null"
	if withUsage {
		used = usage
	}
	if number == events-1 {
		choices = "[]"
	}
	const form = `data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"m","choices":%s,"usage":%s}`
	return httpChunk(fmt.Sprintf(form, choices, used) + "\n\n")
}

func upstream(port string) {
	words := strings.Repeat("word ", 20)
	whole := `{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,` +
		`"message":{"role":"assistant","content":"` + words + `"},"finish_reason":"stop"}],"usage":` + usage + `}`
	answer := fmt.Appendf(nil, "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s", len(whole), whole)
	last, each := streamHead, streamHead
	for number := range events {
		last += event(number, number == events-1)
		each += event(number, true)
	}
	done := httpChunk("data: [DONE]\n\n") + streamEnd
	server := Server{answer: answer, stream: []byte(last + done), continuous: []byte(each + done), done: []byte(done)}
	listener, err := net.Listen("tcp", "127.0.0.1:"+port)
	check(err)
	for {
		connection, err := listener.Accept()
		check(err)
		go server.serve(connection)
	}
}

// Server has its answers ready. A stream is written in one piece: what is measured is the gateway's work.
type Server struct{ answer, stream, continuous, done []byte }

func (server *Server) serve(connection net.Conn) {
	defer connection.Close()
	buffer, filled := make([]byte, 64*1024), 0
	for {
		count, err := connection.Read(buffer[filled:])
		if err != nil {
			return
		}
		filled += count
		end := bytes.Index(buffer[:filled], headEnd)
		if end < 0 || filled < end+4+contentLength(buffer[:end]) {
			continue
		}
		body := buffer[end+4 : filled]
		filled = 0
		switch {
		case bytes.Contains(body, []byte(`"slow"`)):
			err = server.slowly(connection)
		case bytes.Contains(body, []byte(`"continuous_usage_stats":true`)):
			_, err = connection.Write(server.continuous)
		case bytes.Contains(body, []byte(`"stream":true`)), bytes.Contains(body, []byte(`"stream": true`)):
			_, err = connection.Write(server.stream)
		default:
			_, err = connection.Write(server.answer)
		}
		if err != nil {
			return
		}
	}
}

func (server *Server) slowly(connection net.Conn) error {
	if _, err := connection.Write([]byte(streamHead)); err != nil {
		return err
	}
	piece := []byte(event(0, true))
	for range slowEvents {
		time.Sleep(slowPause)
		if _, err := connection.Write(piece); err != nil {
			return err
		}
	}
	time.Sleep(slowPause)
	_, err := connection.Write(server.done)
	return err
}

// contentLength is a head's, 0 without one.
func contentLength(head []byte) int {
	_, rest, found := bytes.Cut(bytes.ToLower(head), []byte("content-length:"))
	if !found {
		return 0
	}
	line, _, _ := bytes.Cut(rest, []byte("\r\n"))
	length, err := strconv.Atoi(string(bytes.TrimSpace(line)))
	check(err)
	return length
}

// The load.

// Load is what is asked for. Modes:
//
//	closed  each connection calls again as soon as it is answered, for so many seconds
//	open    so many calls a second, whatever becomes of them; a call's time counts from when it was due
//	once    each connection makes one call
//	race    each connection calls until it is refused
type Load struct {
	Mode        string
	Port        int
	Connections int
	Seconds     float64
	Rate        float64
	Request     string
}

// Result is what came of it: calls by status, events of streams, and in mode "open" each call's seconds.
type Result struct {
	Calls     int         `json:"calls"`
	Statuses  map[int]int `json:"statuses"`
	Events    int         `json:"events"`
	Seconds   float64     `json:"seconds"`
	Latencies []float64   `json:"latencies"`
}

// Caller is one connection.
type Caller struct {
	connection net.Conn
	request    []byte
	buffer     []byte
	events     int
	statuses   map[int]int
}

func (load *Load) dial() *Caller {
	connection, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", load.Port))
	check(err)
	return &Caller{connection, []byte(load.Request), make([]byte, 64*1024), 0, map[int]int{}}
}

// call makes one call, reads its answer to the end, and returns the status; 0 if the connection broke.
func (caller *Caller) call() int {
	status := caller.exchange()
	caller.statuses[status]++
	return status
}

func (caller *Caller) exchange() int {
	if _, err := caller.connection.Write(caller.request); err != nil {
		return 0
	}
	filled, status, need := 0, 0, -1
	for {
		count, err := caller.connection.Read(caller.buffer[filled:])
		if err != nil {
			return 0
		}
		filled += count
		if status == 0 {
			end := bytes.Index(caller.buffer[:filled], headEnd)
			if end < 0 {
				continue
			}
			status, err = strconv.Atoi(string(caller.buffer[9:12]))
			check(err)
			if !bytes.Contains(caller.buffer[:end], []byte("chunked")) {
				need = end + 4 + contentLength(caller.buffer[:end])
			}
		}
		if need >= 0 {
			if filled >= need {
				return status
			}
			continue
		}
		caller.events += bytes.Count(caller.buffer[filled-count:filled], []byte("data: {"))
		if bytes.HasSuffix(caller.buffer[:filled], []byte(streamEnd)) {
			return status
		}
		// Of a stream only the end is looked for: its last bytes are all that is kept.
		filled = copy(caller.buffer, caller.buffer[max(0, filled-len(streamEnd)):filled])
	}
}

func (load *Load) run() Result {
	callers := make([]*Caller, load.Connections)
	for number := range callers {
		callers[number] = load.dial()
	}
	result := Result{Statuses: map[int]int{}, Latencies: []float64{}}
	began := time.Now()
	until := began.Add(time.Duration(load.Seconds * float64(time.Second)))
	if load.Mode == "open" {
		callers, result.Latencies = load.open(callers, began)
	} else {
		var running sync.WaitGroup
		for _, caller := range callers {
			running.Go(func() { load.work(caller, until) })
		}
		running.Wait()
	}
	result.Seconds = time.Since(began).Seconds()
	for _, caller := range callers {
		result.Events += caller.events
		for status, count := range caller.statuses {
			result.Statuses[status] += count
			result.Calls += count
		}
	}
	return result
}

func (load *Load) work(caller *Caller, until time.Time) {
	switch load.Mode {
	case "closed":
		for time.Now().Before(until) && caller.call() != 0 {
		}
	case "once":
		caller.call()
	case "race":
		for caller.call() == 200 {
		}
	default:
		check(fmt.Errorf("there is no mode %q", load.Mode))
	}
}

// open makes calls when they are due; one that finds no idle connection makes a new one.
func (load *Load) open(callers []*Caller, began time.Time) ([]*Caller, []float64) {
	total := int(load.Seconds * load.Rate)
	idle := make(chan *Caller, total+len(callers))
	for _, caller := range callers {
		idle <- caller
	}
	latencies := make([]float64, total)
	var running sync.WaitGroup
	for number := range total {
		due := began.Add(time.Duration(float64(number) / load.Rate * float64(time.Second)))
		time.Sleep(time.Until(due))
		var caller *Caller
		select {
		case caller = <-idle:
		default:
			caller = load.dial()
			callers = append(callers, caller)
		}
		running.Go(func() {
			caller.call()
			latencies[number] = time.Since(due).Seconds()
			idle <- caller
		})
	}
	running.Wait()
	return callers, latencies
}
