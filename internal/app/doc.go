// Package app joins the parts into processes: Serve is one with the roles api
// and worker, Dev is all of it on one machine with its own stores. It is the
// only package that knows all the others.
package app
