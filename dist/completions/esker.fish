# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_esker_global_optspecs
    string join \n data= admin= certs= cert= key= ca= o/output= h/help V/version
end

function __fish_esker_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_esker_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_esker_using_subcommand
    set -l cmd (__fish_esker_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c esker -n "__fish_esker_needs_command" -l data -d 'The daemon\'s folder' -r -F
complete -c esker -n "__fish_esker_needs_command" -l admin -d 'The daemon\'s admin socket as PATH or unix:PATH, or HOST:PORT where its admin API is on TCP [default: DIR/admin.sock]' -r
complete -c esker -n "__fish_esker_needs_command" -l certs -d 'Folder with ca-cert.pem, client-cert.pem and client-key.pem for HOST:PORT, as `esker cert client --bundle` makes it [default: ~/.config/esker]' -r -F
complete -c esker -n "__fish_esker_needs_command" -l cert -d 'Certificate that is shown at HOST:PORT, in PEM; it says what its owner may do [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_needs_command" -l key -d 'The certificate\'s key, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_needs_command" -l ca -d 'Authorities that may vouch for the daemon at HOST:PORT, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_needs_command" -s o -l output -d 'How to show the result' -r -f -a "table\t'For people'
json\t'For scripts; fields are only ever added'
dot\t'For Graphviz; of `snapshot list`'
svg\t'A picture; of `snapshot list`'"
complete -c esker -n "__fish_esker_needs_command" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c esker -n "__fish_esker_needs_command" -s V -l version -d 'Print version'
complete -c esker -n "__fish_esker_needs_command" -f -a "volume" -d 'Create, list and change volumes'
complete -c esker -n "__fish_esker_needs_command" -f -a "snapshot" -d 'Take, list and delete snapshots, go back to one, compare them'
complete -c esker -n "__fish_esker_needs_command" -f -a "clone" -d 'Make a volume that begins as a snapshot is, or as a volume was at a second of its rewind window'
complete -c esker -n "__fish_esker_needs_command" -f -a "key" -d 'Show and rotate the keys of encrypted volumes'
complete -c esker -n "__fish_esker_needs_command" -f -a "replica" -d 'List the copies of a volume, add one on another node of the cluster, take one away'
complete -c esker -n "__fish_esker_needs_command" -f -a "node" -d 'List the nodes of the cluster, add one, drain one, take one away'
complete -c esker -n "__fish_esker_needs_command" -f -a "cluster" -d 'Begin a cluster, show it'
complete -c esker -n "__fish_esker_needs_command" -f -a "space" -d 'Show where the space is, of the node or of one volume'
complete -c esker -n "__fish_esker_needs_command" -f -a "status" -d 'Show the health of the node'
complete -c esker -n "__fish_esker_needs_command" -f -a "cert" -d 'Make certificates for TLS, with an authority of your own'
complete -c esker -n "__fish_esker_needs_command" -f -a "demo" -d 'Show what a cluster does: one on this machine, in a temporary folder, with a node killed under load'
complete -c esker -n "__fish_esker_needs_command" -f -a "verify" -d 'Check every invariant of a store that no daemon has open'
complete -c esker -n "__fish_esker_needs_command" -f -a "inspect" -d 'Dump a part of a store that no daemon has open'
complete -c esker -n "__fish_esker_needs_command" -f -a "man" -d 'Write man pages'
complete -c esker -n "__fish_esker_needs_command" -f -a "completions" -d 'Write completions for a shell to stdout'
complete -c esker -n "__fish_esker_needs_command" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c esker -n "__fish_esker_using_subcommand volume; and not __fish_seen_subcommand_from create set attach detach list show resize rename delete scrub accept-loss help" -l data -d 'The daemon\'s folder' -r -F
complete -c esker -n "__fish_esker_using_subcommand volume; and not __fish_seen_subcommand_from create set attach detach list show resize rename delete scrub accept-loss help" -l admin -d 'The daemon\'s admin socket as PATH or unix:PATH, or HOST:PORT where its admin API is on TCP [default: DIR/admin.sock]' -r
complete -c esker -n "__fish_esker_using_subcommand volume; and not __fish_seen_subcommand_from create set attach detach list show resize rename delete scrub accept-loss help" -l certs -d 'Folder with ca-cert.pem, client-cert.pem and client-key.pem for HOST:PORT, as `esker cert client --bundle` makes it [default: ~/.config/esker]' -r -F
complete -c esker -n "__fish_esker_using_subcommand volume; and not __fish_seen_subcommand_from create set attach detach list show resize rename delete scrub accept-loss help" -l cert -d 'Certificate that is shown at HOST:PORT, in PEM; it says what its owner may do [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand volume; and not __fish_seen_subcommand_from create set attach detach list show resize rename delete scrub accept-loss help" -l key -d 'The certificate\'s key, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand volume; and not __fish_seen_subcommand_from create set attach detach list show resize rename delete scrub accept-loss help" -l ca -d 'Authorities that may vouch for the daemon at HOST:PORT, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand volume; and not __fish_seen_subcommand_from create set attach detach list show resize rename delete scrub accept-loss help" -s o -l output -d 'How to show the result' -r -f -a "table\t'For people'
json\t'For scripts; fields are only ever added'
dot\t'For Graphviz; of `snapshot list`'
svg\t'A picture; of `snapshot list`'"
complete -c esker -n "__fish_esker_using_subcommand volume; and not __fish_seen_subcommand_from create set attach detach list show resize rename delete scrub accept-loss help" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c esker -n "__fish_esker_using_subcommand volume; and not __fish_seen_subcommand_from create set attach detach list show resize rename delete scrub accept-loss help" -s V -l version -d 'Print version'
complete -c esker -n "__fish_esker_using_subcommand volume; and not __fish_seen_subcommand_from create set attach detach list show resize rename delete scrub accept-loss help" -f -a "create" -d 'Create a volume'
complete -c esker -n "__fish_esker_using_subcommand volume; and not __fish_seen_subcommand_from create set attach detach list show resize rename delete scrub accept-loss help" -f -a "set" -d 'Change the snapshot schedule, the rewind window and labels of a volume'
complete -c esker -n "__fish_esker_using_subcommand volume; and not __fish_seen_subcommand_from create set attach detach list show resize rename delete scrub accept-loss help" -f -a "attach" -d 'Give a volume to one holder alone: its sessions attach as VOLUME:NUMBER, and those before them end'
complete -c esker -n "__fish_esker_using_subcommand volume; and not __fish_seen_subcommand_from create set attach detach list show resize rename delete scrub accept-loss help" -f -a "detach" -d 'Take a volume back from its holder, whose sessions end: anybody may attach then'
complete -c esker -n "__fish_esker_using_subcommand volume; and not __fish_seen_subcommand_from create set attach detach list show resize rename delete scrub accept-loss help" -f -a "list" -d 'List all volumes'
complete -c esker -n "__fish_esker_using_subcommand volume; and not __fish_seen_subcommand_from create set attach detach list show resize rename delete scrub accept-loss help" -f -a "show" -d 'Show a volume'
complete -c esker -n "__fish_esker_using_subcommand volume; and not __fish_seen_subcommand_from create set attach detach list show resize rename delete scrub accept-loss help" -f -a "resize" -d 'Grow a volume'
complete -c esker -n "__fish_esker_using_subcommand volume; and not __fish_seen_subcommand_from create set attach detach list show resize rename delete scrub accept-loss help" -f -a "rename" -d 'Rename a volume'
complete -c esker -n "__fish_esker_using_subcommand volume; and not __fish_seen_subcommand_from create set attach detach list show resize rename delete scrub accept-loss help" -f -a "delete" -d 'Delete a volume and all its data'
complete -c esker -n "__fish_esker_using_subcommand volume; and not __fish_seen_subcommand_from create set attach detach list show resize rename delete scrub accept-loss help" -f -a "scrub" -d 'Read and check everything that is stored of a volume, its snapshots and what it was cloned from'
complete -c esker -n "__fish_esker_using_subcommand volume; and not __fish_seen_subcommand_from create set attach detach list show resize rename delete scrub accept-loss help" -f -a "accept-loss" -d 'Accept that a suspended volume lost a record of its log, and serve what is left; or take the map of an encrypted one as it is'
complete -c esker -n "__fish_esker_using_subcommand volume; and not __fish_seen_subcommand_from create set attach detach list show resize rename delete scrub accept-loss help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from create" -l size -d 'Size, like 10GiB' -r
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from create" -l replicas -d 'Number of copies' -r
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from create" -l label -d 'Label; may be repeated' -r
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from create" -l snapshot-schedule -d 'When it gets snapshots by itself and how many are kept, like `hourly keep 24, daily keep 7`, or `none` [default: as the daemon is configured]' -r
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from create" -l rewind -d 'How far back it can be cloned as it was at any second, like 6h, or `none` [default: as the daemon is configured]' -r
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from create" -l data -d 'The daemon\'s folder' -r -F
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from create" -l admin -d 'The daemon\'s admin socket as PATH or unix:PATH, or HOST:PORT where its admin API is on TCP [default: DIR/admin.sock]' -r
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from create" -l certs -d 'Folder with ca-cert.pem, client-cert.pem and client-key.pem for HOST:PORT, as `esker cert client --bundle` makes it [default: ~/.config/esker]' -r -F
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from create" -l cert -d 'Certificate that is shown at HOST:PORT, in PEM; it says what its owner may do [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from create" -l key -d 'The certificate\'s key, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from create" -l ca -d 'Authorities that may vouch for the daemon at HOST:PORT, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from create" -s o -l output -d 'How to show the result' -r -f -a "table\t'For people'
json\t'For scripts; fields are only ever added'
dot\t'For Graphviz; of `snapshot list`'
svg\t'A picture; of `snapshot list`'"
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from create" -l encrypt -d 'Encrypt its blocks, under a key of its own that the daemon\'s key provider wraps'
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from create" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from create" -s V -l version -d 'Print version'
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from set" -l snapshot-schedule -d 'When it gets snapshots by itself and how many are kept, like `every 15m keep 8, daily keep 7`, or `none`. Periods: every TIME (s, m, h, d, w), hourly, daily, weekly, monthly, yearly, and `last`' -r
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from set" -l rewind -d 'How far back it can be cloned as it was at any second, like 6h, or `none`' -r
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from set" -l label -d 'Label that it gets; may be repeated' -r
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from set" -l unlabel -d 'Label that it loses; may be repeated' -r
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from set" -l data -d 'The daemon\'s folder' -r -F
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from set" -l admin -d 'The daemon\'s admin socket as PATH or unix:PATH, or HOST:PORT where its admin API is on TCP [default: DIR/admin.sock]' -r
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from set" -l certs -d 'Folder with ca-cert.pem, client-cert.pem and client-key.pem for HOST:PORT, as `esker cert client --bundle` makes it [default: ~/.config/esker]' -r -F
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from set" -l cert -d 'Certificate that is shown at HOST:PORT, in PEM; it says what its owner may do [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from set" -l key -d 'The certificate\'s key, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from set" -l ca -d 'Authorities that may vouch for the daemon at HOST:PORT, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from set" -s o -l output -d 'How to show the result' -r -f -a "table\t'For people'
json\t'For scripts; fields are only ever added'
dot\t'For Graphviz; of `snapshot list`'
svg\t'A picture; of `snapshot list`'"
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from set" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from set" -s V -l version -d 'Print version'
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from attach" -l holder -d 'Who gets it, like the name of a host or of a machine; the name of this one' -r
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from attach" -l data -d 'The daemon\'s folder' -r -F
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from attach" -l admin -d 'The daemon\'s admin socket as PATH or unix:PATH, or HOST:PORT where its admin API is on TCP [default: DIR/admin.sock]' -r
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from attach" -l certs -d 'Folder with ca-cert.pem, client-cert.pem and client-key.pem for HOST:PORT, as `esker cert client --bundle` makes it [default: ~/.config/esker]' -r -F
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from attach" -l cert -d 'Certificate that is shown at HOST:PORT, in PEM; it says what its owner may do [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from attach" -l key -d 'The certificate\'s key, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from attach" -l ca -d 'Authorities that may vouch for the daemon at HOST:PORT, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from attach" -s o -l output -d 'How to show the result' -r -f -a "table\t'For people'
json\t'For scripts; fields are only ever added'
dot\t'For Graphviz; of `snapshot list`'
svg\t'A picture; of `snapshot list`'"
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from attach" -l fence -d 'Take it from whoever has it: nothing that was asked for before is carried out afterwards'
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from attach" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from attach" -s V -l version -d 'Print version'
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from detach" -l attachment -d 'Only if this attachment is in force' -r
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from detach" -l data -d 'The daemon\'s folder' -r -F
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from detach" -l admin -d 'The daemon\'s admin socket as PATH or unix:PATH, or HOST:PORT where its admin API is on TCP [default: DIR/admin.sock]' -r
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from detach" -l certs -d 'Folder with ca-cert.pem, client-cert.pem and client-key.pem for HOST:PORT, as `esker cert client --bundle` makes it [default: ~/.config/esker]' -r -F
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from detach" -l cert -d 'Certificate that is shown at HOST:PORT, in PEM; it says what its owner may do [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from detach" -l key -d 'The certificate\'s key, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from detach" -l ca -d 'Authorities that may vouch for the daemon at HOST:PORT, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from detach" -s o -l output -d 'How to show the result' -r -f -a "table\t'For people'
json\t'For scripts; fields are only ever added'
dot\t'For Graphviz; of `snapshot list`'
svg\t'A picture; of `snapshot list`'"
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from detach" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from detach" -s V -l version -d 'Print version'
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from list" -l data -d 'The daemon\'s folder' -r -F
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from list" -l admin -d 'The daemon\'s admin socket as PATH or unix:PATH, or HOST:PORT where its admin API is on TCP [default: DIR/admin.sock]' -r
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from list" -l certs -d 'Folder with ca-cert.pem, client-cert.pem and client-key.pem for HOST:PORT, as `esker cert client --bundle` makes it [default: ~/.config/esker]' -r -F
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from list" -l cert -d 'Certificate that is shown at HOST:PORT, in PEM; it says what its owner may do [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from list" -l key -d 'The certificate\'s key, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from list" -l ca -d 'Authorities that may vouch for the daemon at HOST:PORT, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from list" -s o -l output -d 'How to show the result' -r -f -a "table\t'For people'
json\t'For scripts; fields are only ever added'
dot\t'For Graphviz; of `snapshot list`'
svg\t'A picture; of `snapshot list`'"
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from list" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from list" -s V -l version -d 'Print version'
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from show" -l data -d 'The daemon\'s folder' -r -F
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from show" -l admin -d 'The daemon\'s admin socket as PATH or unix:PATH, or HOST:PORT where its admin API is on TCP [default: DIR/admin.sock]' -r
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from show" -l certs -d 'Folder with ca-cert.pem, client-cert.pem and client-key.pem for HOST:PORT, as `esker cert client --bundle` makes it [default: ~/.config/esker]' -r -F
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from show" -l cert -d 'Certificate that is shown at HOST:PORT, in PEM; it says what its owner may do [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from show" -l key -d 'The certificate\'s key, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from show" -l ca -d 'Authorities that may vouch for the daemon at HOST:PORT, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from show" -s o -l output -d 'How to show the result' -r -f -a "table\t'For people'
json\t'For scripts; fields are only ever added'
dot\t'For Graphviz; of `snapshot list`'
svg\t'A picture; of `snapshot list`'"
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from show" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from show" -s V -l version -d 'Print version'
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from resize" -l size -d 'New size, like 20GiB' -r
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from resize" -l data -d 'The daemon\'s folder' -r -F
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from resize" -l admin -d 'The daemon\'s admin socket as PATH or unix:PATH, or HOST:PORT where its admin API is on TCP [default: DIR/admin.sock]' -r
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from resize" -l certs -d 'Folder with ca-cert.pem, client-cert.pem and client-key.pem for HOST:PORT, as `esker cert client --bundle` makes it [default: ~/.config/esker]' -r -F
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from resize" -l cert -d 'Certificate that is shown at HOST:PORT, in PEM; it says what its owner may do [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from resize" -l key -d 'The certificate\'s key, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from resize" -l ca -d 'Authorities that may vouch for the daemon at HOST:PORT, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from resize" -s o -l output -d 'How to show the result' -r -f -a "table\t'For people'
json\t'For scripts; fields are only ever added'
dot\t'For Graphviz; of `snapshot list`'
svg\t'A picture; of `snapshot list`'"
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from resize" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from resize" -s V -l version -d 'Print version'
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from rename" -l data -d 'The daemon\'s folder' -r -F
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from rename" -l admin -d 'The daemon\'s admin socket as PATH or unix:PATH, or HOST:PORT where its admin API is on TCP [default: DIR/admin.sock]' -r
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from rename" -l certs -d 'Folder with ca-cert.pem, client-cert.pem and client-key.pem for HOST:PORT, as `esker cert client --bundle` makes it [default: ~/.config/esker]' -r -F
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from rename" -l cert -d 'Certificate that is shown at HOST:PORT, in PEM; it says what its owner may do [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from rename" -l key -d 'The certificate\'s key, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from rename" -l ca -d 'Authorities that may vouch for the daemon at HOST:PORT, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from rename" -s o -l output -d 'How to show the result' -r -f -a "table\t'For people'
json\t'For scripts; fields are only ever added'
dot\t'For Graphviz; of `snapshot list`'
svg\t'A picture; of `snapshot list`'"
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from rename" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from rename" -s V -l version -d 'Print version'
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from delete" -l data -d 'The daemon\'s folder' -r -F
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from delete" -l admin -d 'The daemon\'s admin socket as PATH or unix:PATH, or HOST:PORT where its admin API is on TCP [default: DIR/admin.sock]' -r
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from delete" -l certs -d 'Folder with ca-cert.pem, client-cert.pem and client-key.pem for HOST:PORT, as `esker cert client --bundle` makes it [default: ~/.config/esker]' -r -F
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from delete" -l cert -d 'Certificate that is shown at HOST:PORT, in PEM; it says what its owner may do [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from delete" -l key -d 'The certificate\'s key, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from delete" -l ca -d 'Authorities that may vouch for the daemon at HOST:PORT, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from delete" -s o -l output -d 'How to show the result' -r -f -a "table\t'For people'
json\t'For scripts; fields are only ever added'
dot\t'For Graphviz; of `snapshot list`'
svg\t'A picture; of `snapshot list`'"
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from delete" -l with-snapshots -d 'Delete its snapshots with it; otherwise a volume with snapshots is refused'
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from delete" -s y -l yes -d 'Do not ask; only asked at a terminal'
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from delete" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from delete" -s V -l version -d 'Print version'
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from scrub" -l data -d 'The daemon\'s folder' -r -F
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from scrub" -l admin -d 'The daemon\'s admin socket as PATH or unix:PATH, or HOST:PORT where its admin API is on TCP [default: DIR/admin.sock]' -r
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from scrub" -l certs -d 'Folder with ca-cert.pem, client-cert.pem and client-key.pem for HOST:PORT, as `esker cert client --bundle` makes it [default: ~/.config/esker]' -r -F
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from scrub" -l cert -d 'Certificate that is shown at HOST:PORT, in PEM; it says what its owner may do [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from scrub" -l key -d 'The certificate\'s key, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from scrub" -l ca -d 'Authorities that may vouch for the daemon at HOST:PORT, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from scrub" -s o -l output -d 'How to show the result' -r -f -a "table\t'For people'
json\t'For scripts; fields are only ever added'
dot\t'For Graphviz; of `snapshot list`'
svg\t'A picture; of `snapshot list`'"
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from scrub" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from scrub" -s V -l version -d 'Print version'
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from accept-loss" -l data -d 'The daemon\'s folder' -r -F
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from accept-loss" -l admin -d 'The daemon\'s admin socket as PATH or unix:PATH, or HOST:PORT where its admin API is on TCP [default: DIR/admin.sock]' -r
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from accept-loss" -l certs -d 'Folder with ca-cert.pem, client-cert.pem and client-key.pem for HOST:PORT, as `esker cert client --bundle` makes it [default: ~/.config/esker]' -r -F
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from accept-loss" -l cert -d 'Certificate that is shown at HOST:PORT, in PEM; it says what its owner may do [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from accept-loss" -l key -d 'The certificate\'s key, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from accept-loss" -l ca -d 'Authorities that may vouch for the daemon at HOST:PORT, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from accept-loss" -s o -l output -d 'How to show the result' -r -f -a "table\t'For people'
json\t'For scripts; fields are only ever added'
dot\t'For Graphviz; of `snapshot list`'
svg\t'A picture; of `snapshot list`'"
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from accept-loss" -l all -d 'Every suspended volume of the node'
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from accept-loss" -l yes -d 'Needed: what was lost does not come back'
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from accept-loss" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from accept-loss" -s V -l version -d 'Print version'
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from help" -f -a "create" -d 'Create a volume'
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from help" -f -a "set" -d 'Change the snapshot schedule, the rewind window and labels of a volume'
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from help" -f -a "attach" -d 'Give a volume to one holder alone: its sessions attach as VOLUME:NUMBER, and those before them end'
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from help" -f -a "detach" -d 'Take a volume back from its holder, whose sessions end: anybody may attach then'
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from help" -f -a "list" -d 'List all volumes'
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from help" -f -a "show" -d 'Show a volume'
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from help" -f -a "resize" -d 'Grow a volume'
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from help" -f -a "rename" -d 'Rename a volume'
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from help" -f -a "delete" -d 'Delete a volume and all its data'
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from help" -f -a "scrub" -d 'Read and check everything that is stored of a volume, its snapshots and what it was cloned from'
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from help" -f -a "accept-loss" -d 'Accept that a suspended volume lost a record of its log, and serve what is left; or take the map of an encrypted one as it is'
complete -c esker -n "__fish_esker_using_subcommand volume; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c esker -n "__fish_esker_using_subcommand snapshot; and not __fish_seen_subcommand_from create list delete prune rollback diff help" -l data -d 'The daemon\'s folder' -r -F
complete -c esker -n "__fish_esker_using_subcommand snapshot; and not __fish_seen_subcommand_from create list delete prune rollback diff help" -l admin -d 'The daemon\'s admin socket as PATH or unix:PATH, or HOST:PORT where its admin API is on TCP [default: DIR/admin.sock]' -r
complete -c esker -n "__fish_esker_using_subcommand snapshot; and not __fish_seen_subcommand_from create list delete prune rollback diff help" -l certs -d 'Folder with ca-cert.pem, client-cert.pem and client-key.pem for HOST:PORT, as `esker cert client --bundle` makes it [default: ~/.config/esker]' -r -F
complete -c esker -n "__fish_esker_using_subcommand snapshot; and not __fish_seen_subcommand_from create list delete prune rollback diff help" -l cert -d 'Certificate that is shown at HOST:PORT, in PEM; it says what its owner may do [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand snapshot; and not __fish_seen_subcommand_from create list delete prune rollback diff help" -l key -d 'The certificate\'s key, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand snapshot; and not __fish_seen_subcommand_from create list delete prune rollback diff help" -l ca -d 'Authorities that may vouch for the daemon at HOST:PORT, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand snapshot; and not __fish_seen_subcommand_from create list delete prune rollback diff help" -s o -l output -d 'How to show the result' -r -f -a "table\t'For people'
json\t'For scripts; fields are only ever added'
dot\t'For Graphviz; of `snapshot list`'
svg\t'A picture; of `snapshot list`'"
complete -c esker -n "__fish_esker_using_subcommand snapshot; and not __fish_seen_subcommand_from create list delete prune rollback diff help" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c esker -n "__fish_esker_using_subcommand snapshot; and not __fish_seen_subcommand_from create list delete prune rollback diff help" -s V -l version -d 'Print version'
complete -c esker -n "__fish_esker_using_subcommand snapshot; and not __fish_seen_subcommand_from create list delete prune rollback diff help" -f -a "create" -d 'Keep a volume as it is now, or several as they are at one moment'
complete -c esker -n "__fish_esker_using_subcommand snapshot; and not __fish_seen_subcommand_from create list delete prune rollback diff help" -f -a "list" -d 'List snapshots, oldest first'
complete -c esker -n "__fish_esker_using_subcommand snapshot; and not __fish_seen_subcommand_from create list delete prune rollback diff help" -f -a "delete" -d 'Delete a snapshot; what only it held becomes free'
complete -c esker -n "__fish_esker_using_subcommand snapshot; and not __fish_seen_subcommand_from create list delete prune rollback diff help" -f -a "prune" -d 'Delete the automatic snapshots that the volume\'s schedule does not need any more'
complete -c esker -n "__fish_esker_using_subcommand snapshot; and not __fish_seen_subcommand_from create list delete prune rollback diff help" -f -a "rollback" -d 'Let a volume go on from a snapshot; what it holds now is kept as a snapshot'
complete -c esker -n "__fish_esker_using_subcommand snapshot; and not __fish_seen_subcommand_from create list delete prune rollback diff help" -f -a "diff" -d 'Show what differs between a snapshot and another, the volume as it is now, or a clone'
complete -c esker -n "__fish_esker_using_subcommand snapshot; and not __fish_seen_subcommand_from create list delete prune rollback diff help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c esker -n "__fish_esker_using_subcommand snapshot; and __fish_seen_subcommand_from create" -l label -d 'Label; may be repeated' -r
complete -c esker -n "__fish_esker_using_subcommand snapshot; and __fish_seen_subcommand_from create" -l data -d 'The daemon\'s folder' -r -F
complete -c esker -n "__fish_esker_using_subcommand snapshot; and __fish_seen_subcommand_from create" -l admin -d 'The daemon\'s admin socket as PATH or unix:PATH, or HOST:PORT where its admin API is on TCP [default: DIR/admin.sock]' -r
complete -c esker -n "__fish_esker_using_subcommand snapshot; and __fish_seen_subcommand_from create" -l certs -d 'Folder with ca-cert.pem, client-cert.pem and client-key.pem for HOST:PORT, as `esker cert client --bundle` makes it [default: ~/.config/esker]' -r -F
complete -c esker -n "__fish_esker_using_subcommand snapshot; and __fish_seen_subcommand_from create" -l cert -d 'Certificate that is shown at HOST:PORT, in PEM; it says what its owner may do [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand snapshot; and __fish_seen_subcommand_from create" -l key -d 'The certificate\'s key, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand snapshot; and __fish_seen_subcommand_from create" -l ca -d 'Authorities that may vouch for the daemon at HOST:PORT, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand snapshot; and __fish_seen_subcommand_from create" -s o -l output -d 'How to show the result' -r -f -a "table\t'For people'
json\t'For scripts; fields are only ever added'
dot\t'For Graphviz; of `snapshot list`'
svg\t'A picture; of `snapshot list`'"
complete -c esker -n "__fish_esker_using_subcommand snapshot; and __fish_seen_subcommand_from create" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c esker -n "__fish_esker_using_subcommand snapshot; and __fish_seen_subcommand_from create" -s V -l version -d 'Print version'
complete -c esker -n "__fish_esker_using_subcommand snapshot; and __fish_seen_subcommand_from list" -l data -d 'The daemon\'s folder' -r -F
complete -c esker -n "__fish_esker_using_subcommand snapshot; and __fish_seen_subcommand_from list" -l admin -d 'The daemon\'s admin socket as PATH or unix:PATH, or HOST:PORT where its admin API is on TCP [default: DIR/admin.sock]' -r
complete -c esker -n "__fish_esker_using_subcommand snapshot; and __fish_seen_subcommand_from list" -l certs -d 'Folder with ca-cert.pem, client-cert.pem and client-key.pem for HOST:PORT, as `esker cert client --bundle` makes it [default: ~/.config/esker]' -r -F
complete -c esker -n "__fish_esker_using_subcommand snapshot; and __fish_seen_subcommand_from list" -l cert -d 'Certificate that is shown at HOST:PORT, in PEM; it says what its owner may do [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand snapshot; and __fish_seen_subcommand_from list" -l key -d 'The certificate\'s key, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand snapshot; and __fish_seen_subcommand_from list" -l ca -d 'Authorities that may vouch for the daemon at HOST:PORT, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand snapshot; and __fish_seen_subcommand_from list" -s o -l output -d 'How to show the result' -r -f -a "table\t'For people'
json\t'For scripts; fields are only ever added'
dot\t'For Graphviz; of `snapshot list`'
svg\t'A picture; of `snapshot list`'"
complete -c esker -n "__fish_esker_using_subcommand snapshot; and __fish_seen_subcommand_from list" -l graph -d 'Draw what began from what, branches that rollbacks left included'
complete -c esker -n "__fish_esker_using_subcommand snapshot; and __fish_seen_subcommand_from list" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c esker -n "__fish_esker_using_subcommand snapshot; and __fish_seen_subcommand_from list" -s V -l version -d 'Print version'
complete -c esker -n "__fish_esker_using_subcommand snapshot; and __fish_seen_subcommand_from delete" -l data -d 'The daemon\'s folder' -r -F
complete -c esker -n "__fish_esker_using_subcommand snapshot; and __fish_seen_subcommand_from delete" -l admin -d 'The daemon\'s admin socket as PATH or unix:PATH, or HOST:PORT where its admin API is on TCP [default: DIR/admin.sock]' -r
complete -c esker -n "__fish_esker_using_subcommand snapshot; and __fish_seen_subcommand_from delete" -l certs -d 'Folder with ca-cert.pem, client-cert.pem and client-key.pem for HOST:PORT, as `esker cert client --bundle` makes it [default: ~/.config/esker]' -r -F
complete -c esker -n "__fish_esker_using_subcommand snapshot; and __fish_seen_subcommand_from delete" -l cert -d 'Certificate that is shown at HOST:PORT, in PEM; it says what its owner may do [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand snapshot; and __fish_seen_subcommand_from delete" -l key -d 'The certificate\'s key, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand snapshot; and __fish_seen_subcommand_from delete" -l ca -d 'Authorities that may vouch for the daemon at HOST:PORT, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand snapshot; and __fish_seen_subcommand_from delete" -s o -l output -d 'How to show the result' -r -f -a "table\t'For people'
json\t'For scripts; fields are only ever added'
dot\t'For Graphviz; of `snapshot list`'
svg\t'A picture; of `snapshot list`'"
complete -c esker -n "__fish_esker_using_subcommand snapshot; and __fish_seen_subcommand_from delete" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c esker -n "__fish_esker_using_subcommand snapshot; and __fish_seen_subcommand_from delete" -s V -l version -d 'Print version'
complete -c esker -n "__fish_esker_using_subcommand snapshot; and __fish_seen_subcommand_from prune" -l snapshot-schedule -d 'As if this were its schedule' -r
complete -c esker -n "__fish_esker_using_subcommand snapshot; and __fish_seen_subcommand_from prune" -l data -d 'The daemon\'s folder' -r -F
complete -c esker -n "__fish_esker_using_subcommand snapshot; and __fish_seen_subcommand_from prune" -l admin -d 'The daemon\'s admin socket as PATH or unix:PATH, or HOST:PORT where its admin API is on TCP [default: DIR/admin.sock]' -r
complete -c esker -n "__fish_esker_using_subcommand snapshot; and __fish_seen_subcommand_from prune" -l certs -d 'Folder with ca-cert.pem, client-cert.pem and client-key.pem for HOST:PORT, as `esker cert client --bundle` makes it [default: ~/.config/esker]' -r -F
complete -c esker -n "__fish_esker_using_subcommand snapshot; and __fish_seen_subcommand_from prune" -l cert -d 'Certificate that is shown at HOST:PORT, in PEM; it says what its owner may do [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand snapshot; and __fish_seen_subcommand_from prune" -l key -d 'The certificate\'s key, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand snapshot; and __fish_seen_subcommand_from prune" -l ca -d 'Authorities that may vouch for the daemon at HOST:PORT, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand snapshot; and __fish_seen_subcommand_from prune" -s o -l output -d 'How to show the result' -r -f -a "table\t'For people'
json\t'For scripts; fields are only ever added'
dot\t'For Graphviz; of `snapshot list`'
svg\t'A picture; of `snapshot list`'"
complete -c esker -n "__fish_esker_using_subcommand snapshot; and __fish_seen_subcommand_from prune" -l dry-run -d 'Delete nothing, tell what would be'
complete -c esker -n "__fish_esker_using_subcommand snapshot; and __fish_seen_subcommand_from prune" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c esker -n "__fish_esker_using_subcommand snapshot; and __fish_seen_subcommand_from prune" -s V -l version -d 'Print version'
complete -c esker -n "__fish_esker_using_subcommand snapshot; and __fish_seen_subcommand_from rollback" -l keep -d 'Name of the snapshot of what the volume holds now [default: before-rollback-TIME]' -r
complete -c esker -n "__fish_esker_using_subcommand snapshot; and __fish_seen_subcommand_from rollback" -l data -d 'The daemon\'s folder' -r -F
complete -c esker -n "__fish_esker_using_subcommand snapshot; and __fish_seen_subcommand_from rollback" -l admin -d 'The daemon\'s admin socket as PATH or unix:PATH, or HOST:PORT where its admin API is on TCP [default: DIR/admin.sock]' -r
complete -c esker -n "__fish_esker_using_subcommand snapshot; and __fish_seen_subcommand_from rollback" -l certs -d 'Folder with ca-cert.pem, client-cert.pem and client-key.pem for HOST:PORT, as `esker cert client --bundle` makes it [default: ~/.config/esker]' -r -F
complete -c esker -n "__fish_esker_using_subcommand snapshot; and __fish_seen_subcommand_from rollback" -l cert -d 'Certificate that is shown at HOST:PORT, in PEM; it says what its owner may do [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand snapshot; and __fish_seen_subcommand_from rollback" -l key -d 'The certificate\'s key, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand snapshot; and __fish_seen_subcommand_from rollback" -l ca -d 'Authorities that may vouch for the daemon at HOST:PORT, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand snapshot; and __fish_seen_subcommand_from rollback" -s o -l output -d 'How to show the result' -r -f -a "table\t'For people'
json\t'For scripts; fields are only ever added'
dot\t'For Graphviz; of `snapshot list`'
svg\t'A picture; of `snapshot list`'"
complete -c esker -n "__fish_esker_using_subcommand snapshot; and __fish_seen_subcommand_from rollback" -l discard -d 'Do not keep what the volume holds now'
complete -c esker -n "__fish_esker_using_subcommand snapshot; and __fish_seen_subcommand_from rollback" -l force -d 'End the sessions that are attached to the volume'
complete -c esker -n "__fish_esker_using_subcommand snapshot; and __fish_seen_subcommand_from rollback" -s y -l yes -d 'Do not ask; only asked at a terminal, and with --discard'
complete -c esker -n "__fish_esker_using_subcommand snapshot; and __fish_seen_subcommand_from rollback" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c esker -n "__fish_esker_using_subcommand snapshot; and __fish_seen_subcommand_from rollback" -s V -l version -d 'Print version'
complete -c esker -n "__fish_esker_using_subcommand snapshot; and __fish_seen_subcommand_from diff" -l data -d 'The daemon\'s folder' -r -F
complete -c esker -n "__fish_esker_using_subcommand snapshot; and __fish_seen_subcommand_from diff" -l admin -d 'The daemon\'s admin socket as PATH or unix:PATH, or HOST:PORT where its admin API is on TCP [default: DIR/admin.sock]' -r
complete -c esker -n "__fish_esker_using_subcommand snapshot; and __fish_seen_subcommand_from diff" -l certs -d 'Folder with ca-cert.pem, client-cert.pem and client-key.pem for HOST:PORT, as `esker cert client --bundle` makes it [default: ~/.config/esker]' -r -F
complete -c esker -n "__fish_esker_using_subcommand snapshot; and __fish_seen_subcommand_from diff" -l cert -d 'Certificate that is shown at HOST:PORT, in PEM; it says what its owner may do [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand snapshot; and __fish_seen_subcommand_from diff" -l key -d 'The certificate\'s key, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand snapshot; and __fish_seen_subcommand_from diff" -l ca -d 'Authorities that may vouch for the daemon at HOST:PORT, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand snapshot; and __fish_seen_subcommand_from diff" -s o -l output -d 'How to show the result' -r -f -a "table\t'For people'
json\t'For scripts; fields are only ever added'
dot\t'For Graphviz; of `snapshot list`'
svg\t'A picture; of `snapshot list`'"
complete -c esker -n "__fish_esker_using_subcommand snapshot; and __fish_seen_subcommand_from diff" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c esker -n "__fish_esker_using_subcommand snapshot; and __fish_seen_subcommand_from diff" -s V -l version -d 'Print version'
complete -c esker -n "__fish_esker_using_subcommand snapshot; and __fish_seen_subcommand_from help" -f -a "create" -d 'Keep a volume as it is now, or several as they are at one moment'
complete -c esker -n "__fish_esker_using_subcommand snapshot; and __fish_seen_subcommand_from help" -f -a "list" -d 'List snapshots, oldest first'
complete -c esker -n "__fish_esker_using_subcommand snapshot; and __fish_seen_subcommand_from help" -f -a "delete" -d 'Delete a snapshot; what only it held becomes free'
complete -c esker -n "__fish_esker_using_subcommand snapshot; and __fish_seen_subcommand_from help" -f -a "prune" -d 'Delete the automatic snapshots that the volume\'s schedule does not need any more'
complete -c esker -n "__fish_esker_using_subcommand snapshot; and __fish_seen_subcommand_from help" -f -a "rollback" -d 'Let a volume go on from a snapshot; what it holds now is kept as a snapshot'
complete -c esker -n "__fish_esker_using_subcommand snapshot; and __fish_seen_subcommand_from help" -f -a "diff" -d 'Show what differs between a snapshot and another, the volume as it is now, or a clone'
complete -c esker -n "__fish_esker_using_subcommand snapshot; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c esker -n "__fish_esker_using_subcommand clone" -l label -d 'Label; may be repeated' -r
complete -c esker -n "__fish_esker_using_subcommand clone" -l data -d 'The daemon\'s folder' -r -F
complete -c esker -n "__fish_esker_using_subcommand clone" -l admin -d 'The daemon\'s admin socket as PATH or unix:PATH, or HOST:PORT where its admin API is on TCP [default: DIR/admin.sock]' -r
complete -c esker -n "__fish_esker_using_subcommand clone" -l certs -d 'Folder with ca-cert.pem, client-cert.pem and client-key.pem for HOST:PORT, as `esker cert client --bundle` makes it [default: ~/.config/esker]' -r -F
complete -c esker -n "__fish_esker_using_subcommand clone" -l cert -d 'Certificate that is shown at HOST:PORT, in PEM; it says what its owner may do [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand clone" -l key -d 'The certificate\'s key, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand clone" -l ca -d 'Authorities that may vouch for the daemon at HOST:PORT, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand clone" -s o -l output -d 'How to show the result' -r -f -a "table\t'For people'
json\t'For scripts; fields are only ever added'
dot\t'For Graphviz; of `snapshot list`'
svg\t'A picture; of `snapshot list`'"
complete -c esker -n "__fish_esker_using_subcommand clone" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c esker -n "__fish_esker_using_subcommand clone" -s V -l version -d 'Print version'
complete -c esker -n "__fish_esker_using_subcommand key; and not __fish_seen_subcommand_from show rotate help" -l data -d 'The daemon\'s folder' -r -F
complete -c esker -n "__fish_esker_using_subcommand key; and not __fish_seen_subcommand_from show rotate help" -l admin -d 'The daemon\'s admin socket as PATH or unix:PATH, or HOST:PORT where its admin API is on TCP [default: DIR/admin.sock]' -r
complete -c esker -n "__fish_esker_using_subcommand key; and not __fish_seen_subcommand_from show rotate help" -l certs -d 'Folder with ca-cert.pem, client-cert.pem and client-key.pem for HOST:PORT, as `esker cert client --bundle` makes it [default: ~/.config/esker]' -r -F
complete -c esker -n "__fish_esker_using_subcommand key; and not __fish_seen_subcommand_from show rotate help" -l cert -d 'Certificate that is shown at HOST:PORT, in PEM; it says what its owner may do [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand key; and not __fish_seen_subcommand_from show rotate help" -l key -d 'The certificate\'s key, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand key; and not __fish_seen_subcommand_from show rotate help" -l ca -d 'Authorities that may vouch for the daemon at HOST:PORT, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand key; and not __fish_seen_subcommand_from show rotate help" -s o -l output -d 'How to show the result' -r -f -a "table\t'For people'
json\t'For scripts; fields are only ever added'
dot\t'For Graphviz; of `snapshot list`'
svg\t'A picture; of `snapshot list`'"
complete -c esker -n "__fish_esker_using_subcommand key; and not __fish_seen_subcommand_from show rotate help" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c esker -n "__fish_esker_using_subcommand key; and not __fish_seen_subcommand_from show rotate help" -s V -l version -d 'Print version'
complete -c esker -n "__fish_esker_using_subcommand key; and not __fish_seen_subcommand_from show rotate help" -f -a "show" -d 'List the keys a volume reads and writes with: what wraps them, and whether they are open'
complete -c esker -n "__fish_esker_using_subcommand key; and not __fish_seen_subcommand_from show rotate help" -f -a "rotate" -d 'Wrap a volume\'s keys anew, under the newest key of the provider, or give it another data key; I/O goes on'
complete -c esker -n "__fish_esker_using_subcommand key; and not __fish_seen_subcommand_from show rotate help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c esker -n "__fish_esker_using_subcommand key; and __fish_seen_subcommand_from show" -l data -d 'The daemon\'s folder' -r -F
complete -c esker -n "__fish_esker_using_subcommand key; and __fish_seen_subcommand_from show" -l admin -d 'The daemon\'s admin socket as PATH or unix:PATH, or HOST:PORT where its admin API is on TCP [default: DIR/admin.sock]' -r
complete -c esker -n "__fish_esker_using_subcommand key; and __fish_seen_subcommand_from show" -l certs -d 'Folder with ca-cert.pem, client-cert.pem and client-key.pem for HOST:PORT, as `esker cert client --bundle` makes it [default: ~/.config/esker]' -r -F
complete -c esker -n "__fish_esker_using_subcommand key; and __fish_seen_subcommand_from show" -l cert -d 'Certificate that is shown at HOST:PORT, in PEM; it says what its owner may do [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand key; and __fish_seen_subcommand_from show" -l key -d 'The certificate\'s key, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand key; and __fish_seen_subcommand_from show" -l ca -d 'Authorities that may vouch for the daemon at HOST:PORT, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand key; and __fish_seen_subcommand_from show" -s o -l output -d 'How to show the result' -r -f -a "table\t'For people'
json\t'For scripts; fields are only ever added'
dot\t'For Graphviz; of `snapshot list`'
svg\t'A picture; of `snapshot list`'"
complete -c esker -n "__fish_esker_using_subcommand key; and __fish_seen_subcommand_from show" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c esker -n "__fish_esker_using_subcommand key; and __fish_seen_subcommand_from show" -s V -l version -d 'Print version'
complete -c esker -n "__fish_esker_using_subcommand key; and __fish_seen_subcommand_from rotate" -l data -d 'The daemon\'s folder' -r -F
complete -c esker -n "__fish_esker_using_subcommand key; and __fish_seen_subcommand_from rotate" -l admin -d 'The daemon\'s admin socket as PATH or unix:PATH, or HOST:PORT where its admin API is on TCP [default: DIR/admin.sock]' -r
complete -c esker -n "__fish_esker_using_subcommand key; and __fish_seen_subcommand_from rotate" -l certs -d 'Folder with ca-cert.pem, client-cert.pem and client-key.pem for HOST:PORT, as `esker cert client --bundle` makes it [default: ~/.config/esker]' -r -F
complete -c esker -n "__fish_esker_using_subcommand key; and __fish_seen_subcommand_from rotate" -l cert -d 'Certificate that is shown at HOST:PORT, in PEM; it says what its owner may do [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand key; and __fish_seen_subcommand_from rotate" -l key -d 'The certificate\'s key, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand key; and __fish_seen_subcommand_from rotate" -l ca -d 'Authorities that may vouch for the daemon at HOST:PORT, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand key; and __fish_seen_subcommand_from rotate" -s o -l output -d 'How to show the result' -r -f -a "table\t'For people'
json\t'For scripts; fields are only ever added'
dot\t'For Graphviz; of `snapshot list`'
svg\t'A picture; of `snapshot list`'"
complete -c esker -n "__fish_esker_using_subcommand key; and __fish_seen_subcommand_from rotate" -l data-key -d 'Write under another data key from now on, and seal what is there anew under it; shows how far that is'
complete -c esker -n "__fish_esker_using_subcommand key; and __fish_seen_subcommand_from rotate" -l no-wait -d 'Do not wait for that: it goes on in the background'
complete -c esker -n "__fish_esker_using_subcommand key; and __fish_seen_subcommand_from rotate" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c esker -n "__fish_esker_using_subcommand key; and __fish_seen_subcommand_from rotate" -s V -l version -d 'Print version'
complete -c esker -n "__fish_esker_using_subcommand key; and __fish_seen_subcommand_from help" -f -a "show" -d 'List the keys a volume reads and writes with: what wraps them, and whether they are open'
complete -c esker -n "__fish_esker_using_subcommand key; and __fish_seen_subcommand_from help" -f -a "rotate" -d 'Wrap a volume\'s keys anew, under the newest key of the provider, or give it another data key; I/O goes on'
complete -c esker -n "__fish_esker_using_subcommand key; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c esker -n "__fish_esker_using_subcommand replica; and not __fish_seen_subcommand_from list add remove help" -l data -d 'The daemon\'s folder' -r -F
complete -c esker -n "__fish_esker_using_subcommand replica; and not __fish_seen_subcommand_from list add remove help" -l admin -d 'The daemon\'s admin socket as PATH or unix:PATH, or HOST:PORT where its admin API is on TCP [default: DIR/admin.sock]' -r
complete -c esker -n "__fish_esker_using_subcommand replica; and not __fish_seen_subcommand_from list add remove help" -l certs -d 'Folder with ca-cert.pem, client-cert.pem and client-key.pem for HOST:PORT, as `esker cert client --bundle` makes it [default: ~/.config/esker]' -r -F
complete -c esker -n "__fish_esker_using_subcommand replica; and not __fish_seen_subcommand_from list add remove help" -l cert -d 'Certificate that is shown at HOST:PORT, in PEM; it says what its owner may do [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand replica; and not __fish_seen_subcommand_from list add remove help" -l key -d 'The certificate\'s key, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand replica; and not __fish_seen_subcommand_from list add remove help" -l ca -d 'Authorities that may vouch for the daemon at HOST:PORT, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand replica; and not __fish_seen_subcommand_from list add remove help" -s o -l output -d 'How to show the result' -r -f -a "table\t'For people'
json\t'For scripts; fields are only ever added'
dot\t'For Graphviz; of `snapshot list`'
svg\t'A picture; of `snapshot list`'"
complete -c esker -n "__fish_esker_using_subcommand replica; and not __fish_seen_subcommand_from list add remove help" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c esker -n "__fish_esker_using_subcommand replica; and not __fish_seen_subcommand_from list add remove help" -s V -l version -d 'Print version'
complete -c esker -n "__fish_esker_using_subcommand replica; and not __fish_seen_subcommand_from list add remove help" -f -a "list" -d 'List the copies of a volume: their nodes, whether they vote, and how far they are behind'
complete -c esker -n "__fish_esker_using_subcommand replica; and not __fish_seen_subcommand_from list add remove help" -f -a "add" -d 'Give a volume another copy while it is used; waits until that one has everything and votes'
complete -c esker -n "__fish_esker_using_subcommand replica; and not __fish_seen_subcommand_from list add remove help" -f -a "remove" -d 'Take a copy of a volume away while it is used'
complete -c esker -n "__fish_esker_using_subcommand replica; and not __fish_seen_subcommand_from list add remove help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c esker -n "__fish_esker_using_subcommand replica; and __fish_seen_subcommand_from list" -l data -d 'The daemon\'s folder' -r -F
complete -c esker -n "__fish_esker_using_subcommand replica; and __fish_seen_subcommand_from list" -l admin -d 'The daemon\'s admin socket as PATH or unix:PATH, or HOST:PORT where its admin API is on TCP [default: DIR/admin.sock]' -r
complete -c esker -n "__fish_esker_using_subcommand replica; and __fish_seen_subcommand_from list" -l certs -d 'Folder with ca-cert.pem, client-cert.pem and client-key.pem for HOST:PORT, as `esker cert client --bundle` makes it [default: ~/.config/esker]' -r -F
complete -c esker -n "__fish_esker_using_subcommand replica; and __fish_seen_subcommand_from list" -l cert -d 'Certificate that is shown at HOST:PORT, in PEM; it says what its owner may do [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand replica; and __fish_seen_subcommand_from list" -l key -d 'The certificate\'s key, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand replica; and __fish_seen_subcommand_from list" -l ca -d 'Authorities that may vouch for the daemon at HOST:PORT, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand replica; and __fish_seen_subcommand_from list" -s o -l output -d 'How to show the result' -r -f -a "table\t'For people'
json\t'For scripts; fields are only ever added'
dot\t'For Graphviz; of `snapshot list`'
svg\t'A picture; of `snapshot list`'"
complete -c esker -n "__fish_esker_using_subcommand replica; and __fish_seen_subcommand_from list" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c esker -n "__fish_esker_using_subcommand replica; and __fish_seen_subcommand_from list" -s V -l version -d 'Print version'
complete -c esker -n "__fish_esker_using_subcommand replica; and __fish_seen_subcommand_from add" -l node -d 'Node that gets it; the one with most free space when none is named' -r
complete -c esker -n "__fish_esker_using_subcommand replica; and __fish_seen_subcommand_from add" -l replace -d 'Node whose copy goes once the new one votes; it is deleted when no client is attached through it' -r
complete -c esker -n "__fish_esker_using_subcommand replica; and __fish_seen_subcommand_from add" -l data -d 'The daemon\'s folder' -r -F
complete -c esker -n "__fish_esker_using_subcommand replica; and __fish_seen_subcommand_from add" -l admin -d 'The daemon\'s admin socket as PATH or unix:PATH, or HOST:PORT where its admin API is on TCP [default: DIR/admin.sock]' -r
complete -c esker -n "__fish_esker_using_subcommand replica; and __fish_seen_subcommand_from add" -l certs -d 'Folder with ca-cert.pem, client-cert.pem and client-key.pem for HOST:PORT, as `esker cert client --bundle` makes it [default: ~/.config/esker]' -r -F
complete -c esker -n "__fish_esker_using_subcommand replica; and __fish_seen_subcommand_from add" -l cert -d 'Certificate that is shown at HOST:PORT, in PEM; it says what its owner may do [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand replica; and __fish_seen_subcommand_from add" -l key -d 'The certificate\'s key, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand replica; and __fish_seen_subcommand_from add" -l ca -d 'Authorities that may vouch for the daemon at HOST:PORT, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand replica; and __fish_seen_subcommand_from add" -s o -l output -d 'How to show the result' -r -f -a "table\t'For people'
json\t'For scripts; fields are only ever added'
dot\t'For Graphviz; of `snapshot list`'
svg\t'A picture; of `snapshot list`'"
complete -c esker -n "__fish_esker_using_subcommand replica; and __fish_seen_subcommand_from add" -l no-wait -d 'Do not wait for that: it goes on in the background'
complete -c esker -n "__fish_esker_using_subcommand replica; and __fish_seen_subcommand_from add" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c esker -n "__fish_esker_using_subcommand replica; and __fish_seen_subcommand_from add" -s V -l version -d 'Print version'
complete -c esker -n "__fish_esker_using_subcommand replica; and __fish_seen_subcommand_from remove" -l node -d 'Node whose copy goes' -r
complete -c esker -n "__fish_esker_using_subcommand replica; and __fish_seen_subcommand_from remove" -l data -d 'The daemon\'s folder' -r -F
complete -c esker -n "__fish_esker_using_subcommand replica; and __fish_seen_subcommand_from remove" -l admin -d 'The daemon\'s admin socket as PATH or unix:PATH, or HOST:PORT where its admin API is on TCP [default: DIR/admin.sock]' -r
complete -c esker -n "__fish_esker_using_subcommand replica; and __fish_seen_subcommand_from remove" -l certs -d 'Folder with ca-cert.pem, client-cert.pem and client-key.pem for HOST:PORT, as `esker cert client --bundle` makes it [default: ~/.config/esker]' -r -F
complete -c esker -n "__fish_esker_using_subcommand replica; and __fish_seen_subcommand_from remove" -l cert -d 'Certificate that is shown at HOST:PORT, in PEM; it says what its owner may do [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand replica; and __fish_seen_subcommand_from remove" -l key -d 'The certificate\'s key, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand replica; and __fish_seen_subcommand_from remove" -l ca -d 'Authorities that may vouch for the daemon at HOST:PORT, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand replica; and __fish_seen_subcommand_from remove" -s o -l output -d 'How to show the result' -r -f -a "table\t'For people'
json\t'For scripts; fields are only ever added'
dot\t'For Graphviz; of `snapshot list`'
svg\t'A picture; of `snapshot list`'"
complete -c esker -n "__fish_esker_using_subcommand replica; and __fish_seen_subcommand_from remove" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c esker -n "__fish_esker_using_subcommand replica; and __fish_seen_subcommand_from remove" -s V -l version -d 'Print version'
complete -c esker -n "__fish_esker_using_subcommand replica; and __fish_seen_subcommand_from help" -f -a "list" -d 'List the copies of a volume: their nodes, whether they vote, and how far they are behind'
complete -c esker -n "__fish_esker_using_subcommand replica; and __fish_seen_subcommand_from help" -f -a "add" -d 'Give a volume another copy while it is used; waits until that one has everything and votes'
complete -c esker -n "__fish_esker_using_subcommand replica; and __fish_seen_subcommand_from help" -f -a "remove" -d 'Take a copy of a volume away while it is used'
complete -c esker -n "__fish_esker_using_subcommand replica; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c esker -n "__fish_esker_using_subcommand node; and not __fish_seen_subcommand_from list add remove drain help" -l data -d 'The daemon\'s folder' -r -F
complete -c esker -n "__fish_esker_using_subcommand node; and not __fish_seen_subcommand_from list add remove drain help" -l admin -d 'The daemon\'s admin socket as PATH or unix:PATH, or HOST:PORT where its admin API is on TCP [default: DIR/admin.sock]' -r
complete -c esker -n "__fish_esker_using_subcommand node; and not __fish_seen_subcommand_from list add remove drain help" -l certs -d 'Folder with ca-cert.pem, client-cert.pem and client-key.pem for HOST:PORT, as `esker cert client --bundle` makes it [default: ~/.config/esker]' -r -F
complete -c esker -n "__fish_esker_using_subcommand node; and not __fish_seen_subcommand_from list add remove drain help" -l cert -d 'Certificate that is shown at HOST:PORT, in PEM; it says what its owner may do [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand node; and not __fish_seen_subcommand_from list add remove drain help" -l key -d 'The certificate\'s key, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand node; and not __fish_seen_subcommand_from list add remove drain help" -l ca -d 'Authorities that may vouch for the daemon at HOST:PORT, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand node; and not __fish_seen_subcommand_from list add remove drain help" -s o -l output -d 'How to show the result' -r -f -a "table\t'For people'
json\t'For scripts; fields are only ever added'
dot\t'For Graphviz; of `snapshot list`'
svg\t'A picture; of `snapshot list`'"
complete -c esker -n "__fish_esker_using_subcommand node; and not __fish_seen_subcommand_from list add remove drain help" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c esker -n "__fish_esker_using_subcommand node; and not __fish_seen_subcommand_from list add remove drain help" -s V -l version -d 'Print version'
complete -c esker -n "__fish_esker_using_subcommand node; and not __fish_seen_subcommand_from list add remove drain help" -f -a "list" -d 'List the nodes: whether they answer, how full they are, and what they hold'
complete -c esker -n "__fish_esker_using_subcommand node; and not __fish_seen_subcommand_from list add remove drain help" -f -a "add" -d 'Add a new node to the cluster, one that waits for it (`cluster.join` in its configuration), and wait until it serves. Asked again after an interruption it goes on'
complete -c esker -n "__fish_esker_using_subcommand node; and not __fish_seen_subcommand_from list add remove drain help" -f -a "remove" -d 'Take a node out of the cluster that holds nothing any more (`esker node drain`), or that is gone and whose copies have been made anew elsewhere'
complete -c esker -n "__fish_esker_using_subcommand node; and not __fish_seen_subcommand_from list add remove drain help" -f -a "drain" -d 'Have the copies on a node go to other nodes while they are used; waits until it holds none. It gets no new ones, through restarts too, until it is taken back'
complete -c esker -n "__fish_esker_using_subcommand node; and not __fish_seen_subcommand_from list add remove drain help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c esker -n "__fish_esker_using_subcommand node; and __fish_seen_subcommand_from list" -l data -d 'The daemon\'s folder' -r -F
complete -c esker -n "__fish_esker_using_subcommand node; and __fish_seen_subcommand_from list" -l admin -d 'The daemon\'s admin socket as PATH or unix:PATH, or HOST:PORT where its admin API is on TCP [default: DIR/admin.sock]' -r
complete -c esker -n "__fish_esker_using_subcommand node; and __fish_seen_subcommand_from list" -l certs -d 'Folder with ca-cert.pem, client-cert.pem and client-key.pem for HOST:PORT, as `esker cert client --bundle` makes it [default: ~/.config/esker]' -r -F
complete -c esker -n "__fish_esker_using_subcommand node; and __fish_seen_subcommand_from list" -l cert -d 'Certificate that is shown at HOST:PORT, in PEM; it says what its owner may do [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand node; and __fish_seen_subcommand_from list" -l key -d 'The certificate\'s key, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand node; and __fish_seen_subcommand_from list" -l ca -d 'Authorities that may vouch for the daemon at HOST:PORT, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand node; and __fish_seen_subcommand_from list" -s o -l output -d 'How to show the result' -r -f -a "table\t'For people'
json\t'For scripts; fields are only ever added'
dot\t'For Graphviz; of `snapshot list`'
svg\t'A picture; of `snapshot list`'"
complete -c esker -n "__fish_esker_using_subcommand node; and __fish_seen_subcommand_from list" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c esker -n "__fish_esker_using_subcommand node; and __fish_seen_subcommand_from list" -s V -l version -d 'Print version'
complete -c esker -n "__fish_esker_using_subcommand node; and __fish_seen_subcommand_from add" -l id -d 'Its id; the one its certificate names, or the next free one, when none is said' -r
complete -c esker -n "__fish_esker_using_subcommand node; and __fish_seen_subcommand_from add" -l address -d 'Where its links are reached, when not as its `cluster.listen` says' -r
complete -c esker -n "__fish_esker_using_subcommand node; and __fish_seen_subcommand_from add" -l label -d 'Where it stands: zone=a; may be repeated' -r
complete -c esker -n "__fish_esker_using_subcommand node; and __fish_seen_subcommand_from add" -l data -d 'The daemon\'s folder' -r -F
complete -c esker -n "__fish_esker_using_subcommand node; and __fish_seen_subcommand_from add" -l admin -d 'The daemon\'s admin socket as PATH or unix:PATH, or HOST:PORT where its admin API is on TCP [default: DIR/admin.sock]' -r
complete -c esker -n "__fish_esker_using_subcommand node; and __fish_seen_subcommand_from add" -l certs -d 'Folder with ca-cert.pem, client-cert.pem and client-key.pem for HOST:PORT, as `esker cert client --bundle` makes it [default: ~/.config/esker]' -r -F
complete -c esker -n "__fish_esker_using_subcommand node; and __fish_seen_subcommand_from add" -l cert -d 'Certificate that is shown at HOST:PORT, in PEM; it says what its owner may do [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand node; and __fish_seen_subcommand_from add" -l key -d 'The certificate\'s key, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand node; and __fish_seen_subcommand_from add" -l ca -d 'Authorities that may vouch for the daemon at HOST:PORT, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand node; and __fish_seen_subcommand_from add" -s o -l output -d 'How to show the result' -r -f -a "table\t'For people'
json\t'For scripts; fields are only ever added'
dot\t'For Graphviz; of `snapshot list`'
svg\t'A picture; of `snapshot list`'"
complete -c esker -n "__fish_esker_using_subcommand node; and __fish_seen_subcommand_from add" -l no-wait -d 'Do not wait until it serves'
complete -c esker -n "__fish_esker_using_subcommand node; and __fish_seen_subcommand_from add" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c esker -n "__fish_esker_using_subcommand node; and __fish_seen_subcommand_from add" -s V -l version -d 'Print version'
complete -c esker -n "__fish_esker_using_subcommand node; and __fish_seen_subcommand_from remove" -l data -d 'The daemon\'s folder' -r -F
complete -c esker -n "__fish_esker_using_subcommand node; and __fish_seen_subcommand_from remove" -l admin -d 'The daemon\'s admin socket as PATH or unix:PATH, or HOST:PORT where its admin API is on TCP [default: DIR/admin.sock]' -r
complete -c esker -n "__fish_esker_using_subcommand node; and __fish_seen_subcommand_from remove" -l certs -d 'Folder with ca-cert.pem, client-cert.pem and client-key.pem for HOST:PORT, as `esker cert client --bundle` makes it [default: ~/.config/esker]' -r -F
complete -c esker -n "__fish_esker_using_subcommand node; and __fish_seen_subcommand_from remove" -l cert -d 'Certificate that is shown at HOST:PORT, in PEM; it says what its owner may do [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand node; and __fish_seen_subcommand_from remove" -l key -d 'The certificate\'s key, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand node; and __fish_seen_subcommand_from remove" -l ca -d 'Authorities that may vouch for the daemon at HOST:PORT, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand node; and __fish_seen_subcommand_from remove" -s o -l output -d 'How to show the result' -r -f -a "table\t'For people'
json\t'For scripts; fields are only ever added'
dot\t'For Graphviz; of `snapshot list`'
svg\t'A picture; of `snapshot list`'"
complete -c esker -n "__fish_esker_using_subcommand node; and __fish_seen_subcommand_from remove" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c esker -n "__fish_esker_using_subcommand node; and __fish_seen_subcommand_from remove" -s V -l version -d 'Print version'
complete -c esker -n "__fish_esker_using_subcommand node; and __fish_seen_subcommand_from drain" -l data -d 'The daemon\'s folder' -r -F
complete -c esker -n "__fish_esker_using_subcommand node; and __fish_seen_subcommand_from drain" -l admin -d 'The daemon\'s admin socket as PATH or unix:PATH, or HOST:PORT where its admin API is on TCP [default: DIR/admin.sock]' -r
complete -c esker -n "__fish_esker_using_subcommand node; and __fish_seen_subcommand_from drain" -l certs -d 'Folder with ca-cert.pem, client-cert.pem and client-key.pem for HOST:PORT, as `esker cert client --bundle` makes it [default: ~/.config/esker]' -r -F
complete -c esker -n "__fish_esker_using_subcommand node; and __fish_seen_subcommand_from drain" -l cert -d 'Certificate that is shown at HOST:PORT, in PEM; it says what its owner may do [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand node; and __fish_seen_subcommand_from drain" -l key -d 'The certificate\'s key, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand node; and __fish_seen_subcommand_from drain" -l ca -d 'Authorities that may vouch for the daemon at HOST:PORT, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand node; and __fish_seen_subcommand_from drain" -s o -l output -d 'How to show the result' -r -f -a "table\t'For people'
json\t'For scripts; fields are only ever added'
dot\t'For Graphviz; of `snapshot list`'
svg\t'A picture; of `snapshot list`'"
complete -c esker -n "__fish_esker_using_subcommand node; and __fish_seen_subcommand_from drain" -l cancel -d 'Take the node back: it gets copies again, and those that have not gone stay'
complete -c esker -n "__fish_esker_using_subcommand node; and __fish_seen_subcommand_from drain" -l no-wait -d 'Do not wait: it goes on in the background'
complete -c esker -n "__fish_esker_using_subcommand node; and __fish_seen_subcommand_from drain" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c esker -n "__fish_esker_using_subcommand node; and __fish_seen_subcommand_from drain" -s V -l version -d 'Print version'
complete -c esker -n "__fish_esker_using_subcommand node; and __fish_seen_subcommand_from help" -f -a "list" -d 'List the nodes: whether they answer, how full they are, and what they hold'
complete -c esker -n "__fish_esker_using_subcommand node; and __fish_seen_subcommand_from help" -f -a "add" -d 'Add a new node to the cluster, one that waits for it (`cluster.join` in its configuration), and wait until it serves. Asked again after an interruption it goes on'
complete -c esker -n "__fish_esker_using_subcommand node; and __fish_seen_subcommand_from help" -f -a "remove" -d 'Take a node out of the cluster that holds nothing any more (`esker node drain`), or that is gone and whose copies have been made anew elsewhere'
complete -c esker -n "__fish_esker_using_subcommand node; and __fish_seen_subcommand_from help" -f -a "drain" -d 'Have the copies on a node go to other nodes while they are used; waits until it holds none. It gets no new ones, through restarts too, until it is taken back'
complete -c esker -n "__fish_esker_using_subcommand node; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c esker -n "__fish_esker_using_subcommand cluster; and not __fish_seen_subcommand_from init status help" -l data -d 'The daemon\'s folder' -r -F
complete -c esker -n "__fish_esker_using_subcommand cluster; and not __fish_seen_subcommand_from init status help" -l admin -d 'The daemon\'s admin socket as PATH or unix:PATH, or HOST:PORT where its admin API is on TCP [default: DIR/admin.sock]' -r
complete -c esker -n "__fish_esker_using_subcommand cluster; and not __fish_seen_subcommand_from init status help" -l certs -d 'Folder with ca-cert.pem, client-cert.pem and client-key.pem for HOST:PORT, as `esker cert client --bundle` makes it [default: ~/.config/esker]' -r -F
complete -c esker -n "__fish_esker_using_subcommand cluster; and not __fish_seen_subcommand_from init status help" -l cert -d 'Certificate that is shown at HOST:PORT, in PEM; it says what its owner may do [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand cluster; and not __fish_seen_subcommand_from init status help" -l key -d 'The certificate\'s key, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand cluster; and not __fish_seen_subcommand_from init status help" -l ca -d 'Authorities that may vouch for the daemon at HOST:PORT, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand cluster; and not __fish_seen_subcommand_from init status help" -s o -l output -d 'How to show the result' -r -f -a "table\t'For people'
json\t'For scripts; fields are only ever added'
dot\t'For Graphviz; of `snapshot list`'
svg\t'A picture; of `snapshot list`'"
complete -c esker -n "__fish_esker_using_subcommand cluster; and not __fish_seen_subcommand_from init status help" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c esker -n "__fish_esker_using_subcommand cluster; and not __fish_seen_subcommand_from init status help" -s V -l version -d 'Print version'
complete -c esker -n "__fish_esker_using_subcommand cluster; and not __fish_seen_subcommand_from init status help" -f -a "init" -d 'Make this node the first of a cluster; `esker node add` adds others'
complete -c esker -n "__fish_esker_using_subcommand cluster; and not __fish_seen_subcommand_from init status help" -f -a "status" -d 'Show the nodes, and what is wrong between them'
complete -c esker -n "__fish_esker_using_subcommand cluster; and not __fish_seen_subcommand_from init status help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c esker -n "__fish_esker_using_subcommand cluster; and __fish_seen_subcommand_from init" -l address -d 'Where others reach its links, when not as its `cluster.listen` says' -r
complete -c esker -n "__fish_esker_using_subcommand cluster; and __fish_seen_subcommand_from init" -l control -d 'Where others reach its `control`, when not as its `cluster.control` says' -r
complete -c esker -n "__fish_esker_using_subcommand cluster; and __fish_seen_subcommand_from init" -l label -d 'Where it stands: zone=a; may be repeated' -r
complete -c esker -n "__fish_esker_using_subcommand cluster; and __fish_seen_subcommand_from init" -l data -d 'The daemon\'s folder' -r -F
complete -c esker -n "__fish_esker_using_subcommand cluster; and __fish_seen_subcommand_from init" -l admin -d 'The daemon\'s admin socket as PATH or unix:PATH, or HOST:PORT where its admin API is on TCP [default: DIR/admin.sock]' -r
complete -c esker -n "__fish_esker_using_subcommand cluster; and __fish_seen_subcommand_from init" -l certs -d 'Folder with ca-cert.pem, client-cert.pem and client-key.pem for HOST:PORT, as `esker cert client --bundle` makes it [default: ~/.config/esker]' -r -F
complete -c esker -n "__fish_esker_using_subcommand cluster; and __fish_seen_subcommand_from init" -l cert -d 'Certificate that is shown at HOST:PORT, in PEM; it says what its owner may do [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand cluster; and __fish_seen_subcommand_from init" -l key -d 'The certificate\'s key, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand cluster; and __fish_seen_subcommand_from init" -l ca -d 'Authorities that may vouch for the daemon at HOST:PORT, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand cluster; and __fish_seen_subcommand_from init" -s o -l output -d 'How to show the result' -r -f -a "table\t'For people'
json\t'For scripts; fields are only ever added'
dot\t'For Graphviz; of `snapshot list`'
svg\t'A picture; of `snapshot list`'"
complete -c esker -n "__fish_esker_using_subcommand cluster; and __fish_seen_subcommand_from init" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c esker -n "__fish_esker_using_subcommand cluster; and __fish_seen_subcommand_from init" -s V -l version -d 'Print version'
complete -c esker -n "__fish_esker_using_subcommand cluster; and __fish_seen_subcommand_from status" -l data -d 'The daemon\'s folder' -r -F
complete -c esker -n "__fish_esker_using_subcommand cluster; and __fish_seen_subcommand_from status" -l admin -d 'The daemon\'s admin socket as PATH or unix:PATH, or HOST:PORT where its admin API is on TCP [default: DIR/admin.sock]' -r
complete -c esker -n "__fish_esker_using_subcommand cluster; and __fish_seen_subcommand_from status" -l certs -d 'Folder with ca-cert.pem, client-cert.pem and client-key.pem for HOST:PORT, as `esker cert client --bundle` makes it [default: ~/.config/esker]' -r -F
complete -c esker -n "__fish_esker_using_subcommand cluster; and __fish_seen_subcommand_from status" -l cert -d 'Certificate that is shown at HOST:PORT, in PEM; it says what its owner may do [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand cluster; and __fish_seen_subcommand_from status" -l key -d 'The certificate\'s key, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand cluster; and __fish_seen_subcommand_from status" -l ca -d 'Authorities that may vouch for the daemon at HOST:PORT, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand cluster; and __fish_seen_subcommand_from status" -s o -l output -d 'How to show the result' -r -f -a "table\t'For people'
json\t'For scripts; fields are only ever added'
dot\t'For Graphviz; of `snapshot list`'
svg\t'A picture; of `snapshot list`'"
complete -c esker -n "__fish_esker_using_subcommand cluster; and __fish_seen_subcommand_from status" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c esker -n "__fish_esker_using_subcommand cluster; and __fish_seen_subcommand_from status" -s V -l version -d 'Print version'
complete -c esker -n "__fish_esker_using_subcommand cluster; and __fish_seen_subcommand_from help" -f -a "init" -d 'Make this node the first of a cluster; `esker node add` adds others'
complete -c esker -n "__fish_esker_using_subcommand cluster; and __fish_seen_subcommand_from help" -f -a "status" -d 'Show the nodes, and what is wrong between them'
complete -c esker -n "__fish_esker_using_subcommand cluster; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c esker -n "__fish_esker_using_subcommand space" -l data -d 'The daemon\'s folder' -r -F
complete -c esker -n "__fish_esker_using_subcommand space" -l admin -d 'The daemon\'s admin socket as PATH or unix:PATH, or HOST:PORT where its admin API is on TCP [default: DIR/admin.sock]' -r
complete -c esker -n "__fish_esker_using_subcommand space" -l certs -d 'Folder with ca-cert.pem, client-cert.pem and client-key.pem for HOST:PORT, as `esker cert client --bundle` makes it [default: ~/.config/esker]' -r -F
complete -c esker -n "__fish_esker_using_subcommand space" -l cert -d 'Certificate that is shown at HOST:PORT, in PEM; it says what its owner may do [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand space" -l key -d 'The certificate\'s key, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand space" -l ca -d 'Authorities that may vouch for the daemon at HOST:PORT, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand space" -s o -l output -d 'How to show the result' -r -f -a "table\t'For people'
json\t'For scripts; fields are only ever added'
dot\t'For Graphviz; of `snapshot list`'
svg\t'A picture; of `snapshot list`'"
complete -c esker -n "__fish_esker_using_subcommand space" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c esker -n "__fish_esker_using_subcommand space" -s V -l version -d 'Print version'
complete -c esker -n "__fish_esker_using_subcommand status" -l data -d 'The daemon\'s folder' -r -F
complete -c esker -n "__fish_esker_using_subcommand status" -l admin -d 'The daemon\'s admin socket as PATH or unix:PATH, or HOST:PORT where its admin API is on TCP [default: DIR/admin.sock]' -r
complete -c esker -n "__fish_esker_using_subcommand status" -l certs -d 'Folder with ca-cert.pem, client-cert.pem and client-key.pem for HOST:PORT, as `esker cert client --bundle` makes it [default: ~/.config/esker]' -r -F
complete -c esker -n "__fish_esker_using_subcommand status" -l cert -d 'Certificate that is shown at HOST:PORT, in PEM; it says what its owner may do [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand status" -l key -d 'The certificate\'s key, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand status" -l ca -d 'Authorities that may vouch for the daemon at HOST:PORT, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand status" -s o -l output -d 'How to show the result' -r -f -a "table\t'For people'
json\t'For scripts; fields are only ever added'
dot\t'For Graphviz; of `snapshot list`'
svg\t'A picture; of `snapshot list`'"
complete -c esker -n "__fish_esker_using_subcommand status" -l why -d 'Say what is wrong, and the next safe step'
complete -c esker -n "__fish_esker_using_subcommand status" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c esker -n "__fish_esker_using_subcommand status" -s V -l version -d 'Print version'
complete -c esker -n "__fish_esker_using_subcommand cert; and not __fish_seen_subcommand_from init server node client show help" -l data -d 'The daemon\'s folder' -r -F
complete -c esker -n "__fish_esker_using_subcommand cert; and not __fish_seen_subcommand_from init server node client show help" -l admin -d 'The daemon\'s admin socket as PATH or unix:PATH, or HOST:PORT where its admin API is on TCP [default: DIR/admin.sock]' -r
complete -c esker -n "__fish_esker_using_subcommand cert; and not __fish_seen_subcommand_from init server node client show help" -l certs -d 'Folder with ca-cert.pem, client-cert.pem and client-key.pem for HOST:PORT, as `esker cert client --bundle` makes it [default: ~/.config/esker]' -r -F
complete -c esker -n "__fish_esker_using_subcommand cert; and not __fish_seen_subcommand_from init server node client show help" -l cert -d 'Certificate that is shown at HOST:PORT, in PEM; it says what its owner may do [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand cert; and not __fish_seen_subcommand_from init server node client show help" -l key -d 'The certificate\'s key, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand cert; and not __fish_seen_subcommand_from init server node client show help" -l ca -d 'Authorities that may vouch for the daemon at HOST:PORT, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand cert; and not __fish_seen_subcommand_from init server node client show help" -s o -l output -d 'How to show the result' -r -f -a "table\t'For people'
json\t'For scripts; fields are only ever added'
dot\t'For Graphviz; of `snapshot list`'
svg\t'A picture; of `snapshot list`'"
complete -c esker -n "__fish_esker_using_subcommand cert; and not __fish_seen_subcommand_from init server node client show help" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c esker -n "__fish_esker_using_subcommand cert; and not __fish_seen_subcommand_from init server node client show help" -s V -l version -d 'Print version'
complete -c esker -n "__fish_esker_using_subcommand cert; and not __fish_seen_subcommand_from init server node client show help" -f -a "init" -d 'Make an authority: ca.pem, which everybody is given, and ca.key, which makes certificates'
complete -c esker -n "__fish_esker_using_subcommand cert; and not __fish_seen_subcommand_from init server node client show help" -f -a "server" -d 'Issue a certificate for a node'
complete -c esker -n "__fish_esker_using_subcommand cert; and not __fish_seen_subcommand_from init server node client show help" -f -a "node" -d 'Issue a certificate for a node of a cluster: for its clients, and for the other nodes'
complete -c esker -n "__fish_esker_using_subcommand cert; and not __fish_seen_subcommand_from init server node client show help" -f -a "client" -d 'Issue a certificate for a client, which says what its owner may do'
complete -c esker -n "__fish_esker_using_subcommand cert; and not __fish_seen_subcommand_from init server node client show help" -f -a "show" -d 'Show what a certificate says'
complete -c esker -n "__fish_esker_using_subcommand cert; and not __fish_seen_subcommand_from init server node client show help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c esker -n "__fish_esker_using_subcommand cert; and __fish_seen_subcommand_from init" -l out -d 'Folder for it; made if it is not there' -r -F
complete -c esker -n "__fish_esker_using_subcommand cert; and __fish_seen_subcommand_from init" -l name -d 'Its name' -r
complete -c esker -n "__fish_esker_using_subcommand cert; and __fish_seen_subcommand_from init" -l days -d 'Days that it is valid' -r
complete -c esker -n "__fish_esker_using_subcommand cert; and __fish_seen_subcommand_from init" -l data -d 'The daemon\'s folder' -r -F
complete -c esker -n "__fish_esker_using_subcommand cert; and __fish_seen_subcommand_from init" -l admin -d 'The daemon\'s admin socket as PATH or unix:PATH, or HOST:PORT where its admin API is on TCP [default: DIR/admin.sock]' -r
complete -c esker -n "__fish_esker_using_subcommand cert; and __fish_seen_subcommand_from init" -l certs -d 'Folder with ca-cert.pem, client-cert.pem and client-key.pem for HOST:PORT, as `esker cert client --bundle` makes it [default: ~/.config/esker]' -r -F
complete -c esker -n "__fish_esker_using_subcommand cert; and __fish_seen_subcommand_from init" -l cert -d 'Certificate that is shown at HOST:PORT, in PEM; it says what its owner may do [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand cert; and __fish_seen_subcommand_from init" -l key -d 'The certificate\'s key, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand cert; and __fish_seen_subcommand_from init" -l ca -d 'Authorities that may vouch for the daemon at HOST:PORT, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand cert; and __fish_seen_subcommand_from init" -s o -l output -d 'How to show the result' -r -f -a "table\t'For people'
json\t'For scripts; fields are only ever added'
dot\t'For Graphviz; of `snapshot list`'
svg\t'A picture; of `snapshot list`'"
complete -c esker -n "__fish_esker_using_subcommand cert; and __fish_seen_subcommand_from init" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c esker -n "__fish_esker_using_subcommand cert; and __fish_seen_subcommand_from init" -s V -l version -d 'Print version'
complete -c esker -n "__fish_esker_using_subcommand cert; and __fish_seen_subcommand_from server" -l authority -d 'Folder of the authority; the certificate goes there too' -r -F
complete -c esker -n "__fish_esker_using_subcommand cert; and __fish_seen_subcommand_from server" -l host -d 'Host name or address that the node is reached under; may be repeated' -r
complete -c esker -n "__fish_esker_using_subcommand cert; and __fish_seen_subcommand_from server" -l name -d 'Name of the certificate and of its files' -r
complete -c esker -n "__fish_esker_using_subcommand cert; and __fish_seen_subcommand_from server" -l days -d 'Days that it is valid' -r
complete -c esker -n "__fish_esker_using_subcommand cert; and __fish_seen_subcommand_from server" -l data -d 'The daemon\'s folder' -r -F
complete -c esker -n "__fish_esker_using_subcommand cert; and __fish_seen_subcommand_from server" -l admin -d 'The daemon\'s admin socket as PATH or unix:PATH, or HOST:PORT where its admin API is on TCP [default: DIR/admin.sock]' -r
complete -c esker -n "__fish_esker_using_subcommand cert; and __fish_seen_subcommand_from server" -l certs -d 'Folder with ca-cert.pem, client-cert.pem and client-key.pem for HOST:PORT, as `esker cert client --bundle` makes it [default: ~/.config/esker]' -r -F
complete -c esker -n "__fish_esker_using_subcommand cert; and __fish_seen_subcommand_from server" -l cert -d 'Certificate that is shown at HOST:PORT, in PEM; it says what its owner may do [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand cert; and __fish_seen_subcommand_from server" -l key -d 'The certificate\'s key, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand cert; and __fish_seen_subcommand_from server" -l ca -d 'Authorities that may vouch for the daemon at HOST:PORT, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand cert; and __fish_seen_subcommand_from server" -s o -l output -d 'How to show the result' -r -f -a "table\t'For people'
json\t'For scripts; fields are only ever added'
dot\t'For Graphviz; of `snapshot list`'
svg\t'A picture; of `snapshot list`'"
complete -c esker -n "__fish_esker_using_subcommand cert; and __fish_seen_subcommand_from server" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c esker -n "__fish_esker_using_subcommand cert; and __fish_seen_subcommand_from server" -s V -l version -d 'Print version'
complete -c esker -n "__fish_esker_using_subcommand cert; and __fish_seen_subcommand_from node" -l id -d 'The node\'s number, as `esker status` shows it' -r
complete -c esker -n "__fish_esker_using_subcommand cert; and __fish_seen_subcommand_from node" -l authority -d 'Folder of the authority; the certificate goes there too' -r -F
complete -c esker -n "__fish_esker_using_subcommand cert; and __fish_seen_subcommand_from node" -l host -d 'Host name or address that clients reach the node under; may be repeated' -r
complete -c esker -n "__fish_esker_using_subcommand cert; and __fish_seen_subcommand_from node" -l days -d 'Days that it is valid' -r
complete -c esker -n "__fish_esker_using_subcommand cert; and __fish_seen_subcommand_from node" -l data -d 'The daemon\'s folder' -r -F
complete -c esker -n "__fish_esker_using_subcommand cert; and __fish_seen_subcommand_from node" -l admin -d 'The daemon\'s admin socket as PATH or unix:PATH, or HOST:PORT where its admin API is on TCP [default: DIR/admin.sock]' -r
complete -c esker -n "__fish_esker_using_subcommand cert; and __fish_seen_subcommand_from node" -l certs -d 'Folder with ca-cert.pem, client-cert.pem and client-key.pem for HOST:PORT, as `esker cert client --bundle` makes it [default: ~/.config/esker]' -r -F
complete -c esker -n "__fish_esker_using_subcommand cert; and __fish_seen_subcommand_from node" -l cert -d 'Certificate that is shown at HOST:PORT, in PEM; it says what its owner may do [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand cert; and __fish_seen_subcommand_from node" -l key -d 'The certificate\'s key, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand cert; and __fish_seen_subcommand_from node" -l ca -d 'Authorities that may vouch for the daemon at HOST:PORT, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand cert; and __fish_seen_subcommand_from node" -s o -l output -d 'How to show the result' -r -f -a "table\t'For people'
json\t'For scripts; fields are only ever added'
dot\t'For Graphviz; of `snapshot list`'
svg\t'A picture; of `snapshot list`'"
complete -c esker -n "__fish_esker_using_subcommand cert; and __fish_seen_subcommand_from node" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c esker -n "__fish_esker_using_subcommand cert; and __fish_seen_subcommand_from node" -s V -l version -d 'Print version'
complete -c esker -n "__fish_esker_using_subcommand cert; and __fish_seen_subcommand_from client" -l authority -d 'Folder of the authority; the certificate goes there too' -r -F
complete -c esker -n "__fish_esker_using_subcommand cert; and __fish_seen_subcommand_from client" -l role -d 'What it may do over the admin API on TCP. A viewer looks: lists, states, space, differences. An operator also creates and changes volumes, takes, deletes and goes back to snapshots, clones, scrubs, rotates keys. An admin also deletes volumes, accepts losses and changes the cluster' -r
complete -c esker -n "__fish_esker_using_subcommand cert; and __fish_seen_subcommand_from client" -l volume -d 'Volumes it may open over NBD, like `vm-*`; may be repeated' -r
complete -c esker -n "__fish_esker_using_subcommand cert; and __fish_seen_subcommand_from client" -l days -d 'Days that it is valid' -r
complete -c esker -n "__fish_esker_using_subcommand cert; and __fish_seen_subcommand_from client" -l bundle -d 'Also put it into this new folder, with the file names that libnbd and QEMU look for' -r -F
complete -c esker -n "__fish_esker_using_subcommand cert; and __fish_seen_subcommand_from client" -l data -d 'The daemon\'s folder' -r -F
complete -c esker -n "__fish_esker_using_subcommand cert; and __fish_seen_subcommand_from client" -l admin -d 'The daemon\'s admin socket as PATH or unix:PATH, or HOST:PORT where its admin API is on TCP [default: DIR/admin.sock]' -r
complete -c esker -n "__fish_esker_using_subcommand cert; and __fish_seen_subcommand_from client" -l certs -d 'Folder with ca-cert.pem, client-cert.pem and client-key.pem for HOST:PORT, as `esker cert client --bundle` makes it [default: ~/.config/esker]' -r -F
complete -c esker -n "__fish_esker_using_subcommand cert; and __fish_seen_subcommand_from client" -l cert -d 'Certificate that is shown at HOST:PORT, in PEM; it says what its owner may do [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand cert; and __fish_seen_subcommand_from client" -l key -d 'The certificate\'s key, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand cert; and __fish_seen_subcommand_from client" -l ca -d 'Authorities that may vouch for the daemon at HOST:PORT, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand cert; and __fish_seen_subcommand_from client" -s o -l output -d 'How to show the result' -r -f -a "table\t'For people'
json\t'For scripts; fields are only ever added'
dot\t'For Graphviz; of `snapshot list`'
svg\t'A picture; of `snapshot list`'"
complete -c esker -n "__fish_esker_using_subcommand cert; and __fish_seen_subcommand_from client" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c esker -n "__fish_esker_using_subcommand cert; and __fish_seen_subcommand_from client" -s V -l version -d 'Print version'
complete -c esker -n "__fish_esker_using_subcommand cert; and __fish_seen_subcommand_from show" -l data -d 'The daemon\'s folder' -r -F
complete -c esker -n "__fish_esker_using_subcommand cert; and __fish_seen_subcommand_from show" -l admin -d 'The daemon\'s admin socket as PATH or unix:PATH, or HOST:PORT where its admin API is on TCP [default: DIR/admin.sock]' -r
complete -c esker -n "__fish_esker_using_subcommand cert; and __fish_seen_subcommand_from show" -l certs -d 'Folder with ca-cert.pem, client-cert.pem and client-key.pem for HOST:PORT, as `esker cert client --bundle` makes it [default: ~/.config/esker]' -r -F
complete -c esker -n "__fish_esker_using_subcommand cert; and __fish_seen_subcommand_from show" -l cert -d 'Certificate that is shown at HOST:PORT, in PEM; it says what its owner may do [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand cert; and __fish_seen_subcommand_from show" -l key -d 'The certificate\'s key, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand cert; and __fish_seen_subcommand_from show" -l ca -d 'Authorities that may vouch for the daemon at HOST:PORT, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand cert; and __fish_seen_subcommand_from show" -s o -l output -d 'How to show the result' -r -f -a "table\t'For people'
json\t'For scripts; fields are only ever added'
dot\t'For Graphviz; of `snapshot list`'
svg\t'A picture; of `snapshot list`'"
complete -c esker -n "__fish_esker_using_subcommand cert; and __fish_seen_subcommand_from show" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c esker -n "__fish_esker_using_subcommand cert; and __fish_seen_subcommand_from show" -s V -l version -d 'Print version'
complete -c esker -n "__fish_esker_using_subcommand cert; and __fish_seen_subcommand_from help" -f -a "init" -d 'Make an authority: ca.pem, which everybody is given, and ca.key, which makes certificates'
complete -c esker -n "__fish_esker_using_subcommand cert; and __fish_seen_subcommand_from help" -f -a "server" -d 'Issue a certificate for a node'
complete -c esker -n "__fish_esker_using_subcommand cert; and __fish_seen_subcommand_from help" -f -a "node" -d 'Issue a certificate for a node of a cluster: for its clients, and for the other nodes'
complete -c esker -n "__fish_esker_using_subcommand cert; and __fish_seen_subcommand_from help" -f -a "client" -d 'Issue a certificate for a client, which says what its owner may do'
complete -c esker -n "__fish_esker_using_subcommand cert; and __fish_seen_subcommand_from help" -f -a "show" -d 'Show what a certificate says'
complete -c esker -n "__fish_esker_using_subcommand cert; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c esker -n "__fish_esker_using_subcommand demo" -l nodes -d 'Number of nodes: 3 to 7, of which three have a copy of the volume; or 1, which is killed and started again' -r
complete -c esker -n "__fish_esker_using_subcommand demo" -l dir -d 'Where to make the demo\'s folder: a disk with 1 GiB for each node [default: the system\'s temporary folder]' -r -F
complete -c esker -n "__fish_esker_using_subcommand demo" -l stop -d 'Stop the cluster that --keep left in this folder, and remove the folder' -r -F
complete -c esker -n "__fish_esker_using_subcommand demo" -l data -d 'The daemon\'s folder' -r -F
complete -c esker -n "__fish_esker_using_subcommand demo" -l admin -d 'The daemon\'s admin socket as PATH or unix:PATH, or HOST:PORT where its admin API is on TCP [default: DIR/admin.sock]' -r
complete -c esker -n "__fish_esker_using_subcommand demo" -l certs -d 'Folder with ca-cert.pem, client-cert.pem and client-key.pem for HOST:PORT, as `esker cert client --bundle` makes it [default: ~/.config/esker]' -r -F
complete -c esker -n "__fish_esker_using_subcommand demo" -l cert -d 'Certificate that is shown at HOST:PORT, in PEM; it says what its owner may do [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand demo" -l key -d 'The certificate\'s key, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand demo" -l ca -d 'Authorities that may vouch for the daemon at HOST:PORT, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand demo" -s o -l output -d 'How to show the result' -r -f -a "table\t'For people'
json\t'For scripts; fields are only ever added'
dot\t'For Graphviz; of `snapshot list`'
svg\t'A picture; of `snapshot list`'"
complete -c esker -n "__fish_esker_using_subcommand demo" -l keep -d 'Leave the cluster running, and tell how to use and to stop it'
complete -c esker -n "__fish_esker_using_subcommand demo" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c esker -n "__fish_esker_using_subcommand demo" -s V -l version -d 'Print version'
complete -c esker -n "__fish_esker_using_subcommand verify" -l data -d 'The daemon\'s folder' -r -F
complete -c esker -n "__fish_esker_using_subcommand verify" -l admin -d 'The daemon\'s admin socket as PATH or unix:PATH, or HOST:PORT where its admin API is on TCP [default: DIR/admin.sock]' -r
complete -c esker -n "__fish_esker_using_subcommand verify" -l certs -d 'Folder with ca-cert.pem, client-cert.pem and client-key.pem for HOST:PORT, as `esker cert client --bundle` makes it [default: ~/.config/esker]' -r -F
complete -c esker -n "__fish_esker_using_subcommand verify" -l cert -d 'Certificate that is shown at HOST:PORT, in PEM; it says what its owner may do [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand verify" -l key -d 'The certificate\'s key, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand verify" -l ca -d 'Authorities that may vouch for the daemon at HOST:PORT, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand verify" -s o -l output -d 'How to show the result' -r -f -a "table\t'For people'
json\t'For scripts; fields are only ever added'
dot\t'For Graphviz; of `snapshot list`'
svg\t'A picture; of `snapshot list`'"
complete -c esker -n "__fish_esker_using_subcommand verify" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c esker -n "__fish_esker_using_subcommand verify" -s V -l version -d 'Print version'
complete -c esker -n "__fish_esker_using_subcommand inspect; and not __fish_seen_subcommand_from superblock checkpoint segment record node help" -l data -d 'The daemon\'s folder' -r -F
complete -c esker -n "__fish_esker_using_subcommand inspect; and not __fish_seen_subcommand_from superblock checkpoint segment record node help" -l admin -d 'The daemon\'s admin socket as PATH or unix:PATH, or HOST:PORT where its admin API is on TCP [default: DIR/admin.sock]' -r
complete -c esker -n "__fish_esker_using_subcommand inspect; and not __fish_seen_subcommand_from superblock checkpoint segment record node help" -l certs -d 'Folder with ca-cert.pem, client-cert.pem and client-key.pem for HOST:PORT, as `esker cert client --bundle` makes it [default: ~/.config/esker]' -r -F
complete -c esker -n "__fish_esker_using_subcommand inspect; and not __fish_seen_subcommand_from superblock checkpoint segment record node help" -l cert -d 'Certificate that is shown at HOST:PORT, in PEM; it says what its owner may do [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand inspect; and not __fish_seen_subcommand_from superblock checkpoint segment record node help" -l key -d 'The certificate\'s key, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand inspect; and not __fish_seen_subcommand_from superblock checkpoint segment record node help" -l ca -d 'Authorities that may vouch for the daemon at HOST:PORT, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand inspect; and not __fish_seen_subcommand_from superblock checkpoint segment record node help" -s o -l output -d 'How to show the result' -r -f -a "table\t'For people'
json\t'For scripts; fields are only ever added'
dot\t'For Graphviz; of `snapshot list`'
svg\t'A picture; of `snapshot list`'"
complete -c esker -n "__fish_esker_using_subcommand inspect; and not __fish_seen_subcommand_from superblock checkpoint segment record node help" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c esker -n "__fish_esker_using_subcommand inspect; and not __fish_seen_subcommand_from superblock checkpoint segment record node help" -s V -l version -d 'Print version'
complete -c esker -n "__fish_esker_using_subcommand inspect; and not __fish_seen_subcommand_from superblock checkpoint segment record node help" -a "superblock" -d 'All copies of the superblock'
complete -c esker -n "__fish_esker_using_subcommand inspect; and not __fish_seen_subcommand_from superblock checkpoint segment record node help" -a "checkpoint" -d 'The newest checkpoint'
complete -c esker -n "__fish_esker_using_subcommand inspect; and not __fish_seen_subcommand_from superblock checkpoint segment record node help" -a "segment" -d 'What a segment holds'
complete -c esker -n "__fish_esker_using_subcommand inspect; and not __fish_seen_subcommand_from superblock checkpoint segment record node help" -a "record" -d 'A record of the log'
complete -c esker -n "__fish_esker_using_subcommand inspect; and not __fish_seen_subcommand_from superblock checkpoint segment record node help" -a "node" -d 'A node of a map'
complete -c esker -n "__fish_esker_using_subcommand inspect; and not __fish_seen_subcommand_from superblock checkpoint segment record node help" -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c esker -n "__fish_esker_using_subcommand inspect; and __fish_seen_subcommand_from superblock" -l data -d 'The daemon\'s folder' -r -F
complete -c esker -n "__fish_esker_using_subcommand inspect; and __fish_seen_subcommand_from superblock" -l admin -d 'The daemon\'s admin socket as PATH or unix:PATH, or HOST:PORT where its admin API is on TCP [default: DIR/admin.sock]' -r
complete -c esker -n "__fish_esker_using_subcommand inspect; and __fish_seen_subcommand_from superblock" -l certs -d 'Folder with ca-cert.pem, client-cert.pem and client-key.pem for HOST:PORT, as `esker cert client --bundle` makes it [default: ~/.config/esker]' -r -F
complete -c esker -n "__fish_esker_using_subcommand inspect; and __fish_seen_subcommand_from superblock" -l cert -d 'Certificate that is shown at HOST:PORT, in PEM; it says what its owner may do [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand inspect; and __fish_seen_subcommand_from superblock" -l key -d 'The certificate\'s key, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand inspect; and __fish_seen_subcommand_from superblock" -l ca -d 'Authorities that may vouch for the daemon at HOST:PORT, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand inspect; and __fish_seen_subcommand_from superblock" -s o -l output -d 'How to show the result' -r -f -a "table\t'For people'
json\t'For scripts; fields are only ever added'
dot\t'For Graphviz; of `snapshot list`'
svg\t'A picture; of `snapshot list`'"
complete -c esker -n "__fish_esker_using_subcommand inspect; and __fish_seen_subcommand_from superblock" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c esker -n "__fish_esker_using_subcommand inspect; and __fish_seen_subcommand_from superblock" -s V -l version -d 'Print version'
complete -c esker -n "__fish_esker_using_subcommand inspect; and __fish_seen_subcommand_from checkpoint" -l data -d 'The daemon\'s folder' -r -F
complete -c esker -n "__fish_esker_using_subcommand inspect; and __fish_seen_subcommand_from checkpoint" -l admin -d 'The daemon\'s admin socket as PATH or unix:PATH, or HOST:PORT where its admin API is on TCP [default: DIR/admin.sock]' -r
complete -c esker -n "__fish_esker_using_subcommand inspect; and __fish_seen_subcommand_from checkpoint" -l certs -d 'Folder with ca-cert.pem, client-cert.pem and client-key.pem for HOST:PORT, as `esker cert client --bundle` makes it [default: ~/.config/esker]' -r -F
complete -c esker -n "__fish_esker_using_subcommand inspect; and __fish_seen_subcommand_from checkpoint" -l cert -d 'Certificate that is shown at HOST:PORT, in PEM; it says what its owner may do [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand inspect; and __fish_seen_subcommand_from checkpoint" -l key -d 'The certificate\'s key, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand inspect; and __fish_seen_subcommand_from checkpoint" -l ca -d 'Authorities that may vouch for the daemon at HOST:PORT, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand inspect; and __fish_seen_subcommand_from checkpoint" -s o -l output -d 'How to show the result' -r -f -a "table\t'For people'
json\t'For scripts; fields are only ever added'
dot\t'For Graphviz; of `snapshot list`'
svg\t'A picture; of `snapshot list`'"
complete -c esker -n "__fish_esker_using_subcommand inspect; and __fish_seen_subcommand_from checkpoint" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c esker -n "__fish_esker_using_subcommand inspect; and __fish_seen_subcommand_from checkpoint" -s V -l version -d 'Print version'
complete -c esker -n "__fish_esker_using_subcommand inspect; and __fish_seen_subcommand_from segment" -l data -d 'The daemon\'s folder' -r -F
complete -c esker -n "__fish_esker_using_subcommand inspect; and __fish_seen_subcommand_from segment" -l admin -d 'The daemon\'s admin socket as PATH or unix:PATH, or HOST:PORT where its admin API is on TCP [default: DIR/admin.sock]' -r
complete -c esker -n "__fish_esker_using_subcommand inspect; and __fish_seen_subcommand_from segment" -l certs -d 'Folder with ca-cert.pem, client-cert.pem and client-key.pem for HOST:PORT, as `esker cert client --bundle` makes it [default: ~/.config/esker]' -r -F
complete -c esker -n "__fish_esker_using_subcommand inspect; and __fish_seen_subcommand_from segment" -l cert -d 'Certificate that is shown at HOST:PORT, in PEM; it says what its owner may do [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand inspect; and __fish_seen_subcommand_from segment" -l key -d 'The certificate\'s key, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand inspect; and __fish_seen_subcommand_from segment" -l ca -d 'Authorities that may vouch for the daemon at HOST:PORT, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand inspect; and __fish_seen_subcommand_from segment" -s o -l output -d 'How to show the result' -r -f -a "table\t'For people'
json\t'For scripts; fields are only ever added'
dot\t'For Graphviz; of `snapshot list`'
svg\t'A picture; of `snapshot list`'"
complete -c esker -n "__fish_esker_using_subcommand inspect; and __fish_seen_subcommand_from segment" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c esker -n "__fish_esker_using_subcommand inspect; and __fish_seen_subcommand_from segment" -s V -l version -d 'Print version'
complete -c esker -n "__fish_esker_using_subcommand inspect; and __fish_seen_subcommand_from record" -l data -d 'The daemon\'s folder' -r -F
complete -c esker -n "__fish_esker_using_subcommand inspect; and __fish_seen_subcommand_from record" -l admin -d 'The daemon\'s admin socket as PATH or unix:PATH, or HOST:PORT where its admin API is on TCP [default: DIR/admin.sock]' -r
complete -c esker -n "__fish_esker_using_subcommand inspect; and __fish_seen_subcommand_from record" -l certs -d 'Folder with ca-cert.pem, client-cert.pem and client-key.pem for HOST:PORT, as `esker cert client --bundle` makes it [default: ~/.config/esker]' -r -F
complete -c esker -n "__fish_esker_using_subcommand inspect; and __fish_seen_subcommand_from record" -l cert -d 'Certificate that is shown at HOST:PORT, in PEM; it says what its owner may do [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand inspect; and __fish_seen_subcommand_from record" -l key -d 'The certificate\'s key, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand inspect; and __fish_seen_subcommand_from record" -l ca -d 'Authorities that may vouch for the daemon at HOST:PORT, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand inspect; and __fish_seen_subcommand_from record" -s o -l output -d 'How to show the result' -r -f -a "table\t'For people'
json\t'For scripts; fields are only ever added'
dot\t'For Graphviz; of `snapshot list`'
svg\t'A picture; of `snapshot list`'"
complete -c esker -n "__fish_esker_using_subcommand inspect; and __fish_seen_subcommand_from record" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c esker -n "__fish_esker_using_subcommand inspect; and __fish_seen_subcommand_from record" -s V -l version -d 'Print version'
complete -c esker -n "__fish_esker_using_subcommand inspect; and __fish_seen_subcommand_from node" -l data -d 'The daemon\'s folder' -r -F
complete -c esker -n "__fish_esker_using_subcommand inspect; and __fish_seen_subcommand_from node" -l admin -d 'The daemon\'s admin socket as PATH or unix:PATH, or HOST:PORT where its admin API is on TCP [default: DIR/admin.sock]' -r
complete -c esker -n "__fish_esker_using_subcommand inspect; and __fish_seen_subcommand_from node" -l certs -d 'Folder with ca-cert.pem, client-cert.pem and client-key.pem for HOST:PORT, as `esker cert client --bundle` makes it [default: ~/.config/esker]' -r -F
complete -c esker -n "__fish_esker_using_subcommand inspect; and __fish_seen_subcommand_from node" -l cert -d 'Certificate that is shown at HOST:PORT, in PEM; it says what its owner may do [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand inspect; and __fish_seen_subcommand_from node" -l key -d 'The certificate\'s key, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand inspect; and __fish_seen_subcommand_from node" -l ca -d 'Authorities that may vouch for the daemon at HOST:PORT, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand inspect; and __fish_seen_subcommand_from node" -s o -l output -d 'How to show the result' -r -f -a "table\t'For people'
json\t'For scripts; fields are only ever added'
dot\t'For Graphviz; of `snapshot list`'
svg\t'A picture; of `snapshot list`'"
complete -c esker -n "__fish_esker_using_subcommand inspect; and __fish_seen_subcommand_from node" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c esker -n "__fish_esker_using_subcommand inspect; and __fish_seen_subcommand_from node" -s V -l version -d 'Print version'
complete -c esker -n "__fish_esker_using_subcommand inspect; and __fish_seen_subcommand_from help" -f -a "superblock" -d 'All copies of the superblock'
complete -c esker -n "__fish_esker_using_subcommand inspect; and __fish_seen_subcommand_from help" -f -a "checkpoint" -d 'The newest checkpoint'
complete -c esker -n "__fish_esker_using_subcommand inspect; and __fish_seen_subcommand_from help" -f -a "segment" -d 'What a segment holds'
complete -c esker -n "__fish_esker_using_subcommand inspect; and __fish_seen_subcommand_from help" -f -a "record" -d 'A record of the log'
complete -c esker -n "__fish_esker_using_subcommand inspect; and __fish_seen_subcommand_from help" -f -a "node" -d 'A node of a map'
complete -c esker -n "__fish_esker_using_subcommand inspect; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c esker -n "__fish_esker_using_subcommand man" -l out -d 'Folder that gets them' -r -F
complete -c esker -n "__fish_esker_using_subcommand man" -l data -d 'The daemon\'s folder' -r -F
complete -c esker -n "__fish_esker_using_subcommand man" -l admin -d 'The daemon\'s admin socket as PATH or unix:PATH, or HOST:PORT where its admin API is on TCP [default: DIR/admin.sock]' -r
complete -c esker -n "__fish_esker_using_subcommand man" -l certs -d 'Folder with ca-cert.pem, client-cert.pem and client-key.pem for HOST:PORT, as `esker cert client --bundle` makes it [default: ~/.config/esker]' -r -F
complete -c esker -n "__fish_esker_using_subcommand man" -l cert -d 'Certificate that is shown at HOST:PORT, in PEM; it says what its owner may do [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand man" -l key -d 'The certificate\'s key, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand man" -l ca -d 'Authorities that may vouch for the daemon at HOST:PORT, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand man" -s o -l output -d 'How to show the result' -r -f -a "table\t'For people'
json\t'For scripts; fields are only ever added'
dot\t'For Graphviz; of `snapshot list`'
svg\t'A picture; of `snapshot list`'"
complete -c esker -n "__fish_esker_using_subcommand man" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c esker -n "__fish_esker_using_subcommand man" -s V -l version -d 'Print version'
complete -c esker -n "__fish_esker_using_subcommand completions" -l data -d 'The daemon\'s folder' -r -F
complete -c esker -n "__fish_esker_using_subcommand completions" -l admin -d 'The daemon\'s admin socket as PATH or unix:PATH, or HOST:PORT where its admin API is on TCP [default: DIR/admin.sock]' -r
complete -c esker -n "__fish_esker_using_subcommand completions" -l certs -d 'Folder with ca-cert.pem, client-cert.pem and client-key.pem for HOST:PORT, as `esker cert client --bundle` makes it [default: ~/.config/esker]' -r -F
complete -c esker -n "__fish_esker_using_subcommand completions" -l cert -d 'Certificate that is shown at HOST:PORT, in PEM; it says what its owner may do [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand completions" -l key -d 'The certificate\'s key, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand completions" -l ca -d 'Authorities that may vouch for the daemon at HOST:PORT, in PEM [default: of --certs]' -r -F
complete -c esker -n "__fish_esker_using_subcommand completions" -s o -l output -d 'How to show the result' -r -f -a "table\t'For people'
json\t'For scripts; fields are only ever added'
dot\t'For Graphviz; of `snapshot list`'
svg\t'A picture; of `snapshot list`'"
complete -c esker -n "__fish_esker_using_subcommand completions" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c esker -n "__fish_esker_using_subcommand completions" -s V -l version -d 'Print version'
complete -c esker -n "__fish_esker_using_subcommand help; and not __fish_seen_subcommand_from volume snapshot clone key replica node cluster space status cert demo verify inspect man completions help" -f -a "volume" -d 'Create, list and change volumes'
complete -c esker -n "__fish_esker_using_subcommand help; and not __fish_seen_subcommand_from volume snapshot clone key replica node cluster space status cert demo verify inspect man completions help" -f -a "snapshot" -d 'Take, list and delete snapshots, go back to one, compare them'
complete -c esker -n "__fish_esker_using_subcommand help; and not __fish_seen_subcommand_from volume snapshot clone key replica node cluster space status cert demo verify inspect man completions help" -f -a "clone" -d 'Make a volume that begins as a snapshot is, or as a volume was at a second of its rewind window'
complete -c esker -n "__fish_esker_using_subcommand help; and not __fish_seen_subcommand_from volume snapshot clone key replica node cluster space status cert demo verify inspect man completions help" -f -a "key" -d 'Show and rotate the keys of encrypted volumes'
complete -c esker -n "__fish_esker_using_subcommand help; and not __fish_seen_subcommand_from volume snapshot clone key replica node cluster space status cert demo verify inspect man completions help" -f -a "replica" -d 'List the copies of a volume, add one on another node of the cluster, take one away'
complete -c esker -n "__fish_esker_using_subcommand help; and not __fish_seen_subcommand_from volume snapshot clone key replica node cluster space status cert demo verify inspect man completions help" -f -a "node" -d 'List the nodes of the cluster, add one, drain one, take one away'
complete -c esker -n "__fish_esker_using_subcommand help; and not __fish_seen_subcommand_from volume snapshot clone key replica node cluster space status cert demo verify inspect man completions help" -f -a "cluster" -d 'Begin a cluster, show it'
complete -c esker -n "__fish_esker_using_subcommand help; and not __fish_seen_subcommand_from volume snapshot clone key replica node cluster space status cert demo verify inspect man completions help" -f -a "space" -d 'Show where the space is, of the node or of one volume'
complete -c esker -n "__fish_esker_using_subcommand help; and not __fish_seen_subcommand_from volume snapshot clone key replica node cluster space status cert demo verify inspect man completions help" -f -a "status" -d 'Show the health of the node'
complete -c esker -n "__fish_esker_using_subcommand help; and not __fish_seen_subcommand_from volume snapshot clone key replica node cluster space status cert demo verify inspect man completions help" -f -a "cert" -d 'Make certificates for TLS, with an authority of your own'
complete -c esker -n "__fish_esker_using_subcommand help; and not __fish_seen_subcommand_from volume snapshot clone key replica node cluster space status cert demo verify inspect man completions help" -f -a "demo" -d 'Show what a cluster does: one on this machine, in a temporary folder, with a node killed under load'
complete -c esker -n "__fish_esker_using_subcommand help; and not __fish_seen_subcommand_from volume snapshot clone key replica node cluster space status cert demo verify inspect man completions help" -f -a "verify" -d 'Check every invariant of a store that no daemon has open'
complete -c esker -n "__fish_esker_using_subcommand help; and not __fish_seen_subcommand_from volume snapshot clone key replica node cluster space status cert demo verify inspect man completions help" -f -a "inspect" -d 'Dump a part of a store that no daemon has open'
complete -c esker -n "__fish_esker_using_subcommand help; and not __fish_seen_subcommand_from volume snapshot clone key replica node cluster space status cert demo verify inspect man completions help" -f -a "man" -d 'Write man pages'
complete -c esker -n "__fish_esker_using_subcommand help; and not __fish_seen_subcommand_from volume snapshot clone key replica node cluster space status cert demo verify inspect man completions help" -f -a "completions" -d 'Write completions for a shell to stdout'
complete -c esker -n "__fish_esker_using_subcommand help; and not __fish_seen_subcommand_from volume snapshot clone key replica node cluster space status cert demo verify inspect man completions help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c esker -n "__fish_esker_using_subcommand help; and __fish_seen_subcommand_from volume" -f -a "create" -d 'Create a volume'
complete -c esker -n "__fish_esker_using_subcommand help; and __fish_seen_subcommand_from volume" -f -a "set" -d 'Change the snapshot schedule, the rewind window and labels of a volume'
complete -c esker -n "__fish_esker_using_subcommand help; and __fish_seen_subcommand_from volume" -f -a "attach" -d 'Give a volume to one holder alone: its sessions attach as VOLUME:NUMBER, and those before them end'
complete -c esker -n "__fish_esker_using_subcommand help; and __fish_seen_subcommand_from volume" -f -a "detach" -d 'Take a volume back from its holder, whose sessions end: anybody may attach then'
complete -c esker -n "__fish_esker_using_subcommand help; and __fish_seen_subcommand_from volume" -f -a "list" -d 'List all volumes'
complete -c esker -n "__fish_esker_using_subcommand help; and __fish_seen_subcommand_from volume" -f -a "show" -d 'Show a volume'
complete -c esker -n "__fish_esker_using_subcommand help; and __fish_seen_subcommand_from volume" -f -a "resize" -d 'Grow a volume'
complete -c esker -n "__fish_esker_using_subcommand help; and __fish_seen_subcommand_from volume" -f -a "rename" -d 'Rename a volume'
complete -c esker -n "__fish_esker_using_subcommand help; and __fish_seen_subcommand_from volume" -f -a "delete" -d 'Delete a volume and all its data'
complete -c esker -n "__fish_esker_using_subcommand help; and __fish_seen_subcommand_from volume" -f -a "scrub" -d 'Read and check everything that is stored of a volume, its snapshots and what it was cloned from'
complete -c esker -n "__fish_esker_using_subcommand help; and __fish_seen_subcommand_from volume" -f -a "accept-loss" -d 'Accept that a suspended volume lost a record of its log, and serve what is left; or take the map of an encrypted one as it is'
complete -c esker -n "__fish_esker_using_subcommand help; and __fish_seen_subcommand_from snapshot" -f -a "create" -d 'Keep a volume as it is now, or several as they are at one moment'
complete -c esker -n "__fish_esker_using_subcommand help; and __fish_seen_subcommand_from snapshot" -f -a "list" -d 'List snapshots, oldest first'
complete -c esker -n "__fish_esker_using_subcommand help; and __fish_seen_subcommand_from snapshot" -f -a "delete" -d 'Delete a snapshot; what only it held becomes free'
complete -c esker -n "__fish_esker_using_subcommand help; and __fish_seen_subcommand_from snapshot" -f -a "prune" -d 'Delete the automatic snapshots that the volume\'s schedule does not need any more'
complete -c esker -n "__fish_esker_using_subcommand help; and __fish_seen_subcommand_from snapshot" -f -a "rollback" -d 'Let a volume go on from a snapshot; what it holds now is kept as a snapshot'
complete -c esker -n "__fish_esker_using_subcommand help; and __fish_seen_subcommand_from snapshot" -f -a "diff" -d 'Show what differs between a snapshot and another, the volume as it is now, or a clone'
complete -c esker -n "__fish_esker_using_subcommand help; and __fish_seen_subcommand_from key" -f -a "show" -d 'List the keys a volume reads and writes with: what wraps them, and whether they are open'
complete -c esker -n "__fish_esker_using_subcommand help; and __fish_seen_subcommand_from key" -f -a "rotate" -d 'Wrap a volume\'s keys anew, under the newest key of the provider, or give it another data key; I/O goes on'
complete -c esker -n "__fish_esker_using_subcommand help; and __fish_seen_subcommand_from replica" -f -a "list" -d 'List the copies of a volume: their nodes, whether they vote, and how far they are behind'
complete -c esker -n "__fish_esker_using_subcommand help; and __fish_seen_subcommand_from replica" -f -a "add" -d 'Give a volume another copy while it is used; waits until that one has everything and votes'
complete -c esker -n "__fish_esker_using_subcommand help; and __fish_seen_subcommand_from replica" -f -a "remove" -d 'Take a copy of a volume away while it is used'
complete -c esker -n "__fish_esker_using_subcommand help; and __fish_seen_subcommand_from node" -f -a "list" -d 'List the nodes: whether they answer, how full they are, and what they hold'
complete -c esker -n "__fish_esker_using_subcommand help; and __fish_seen_subcommand_from node" -f -a "add" -d 'Add a new node to the cluster, one that waits for it (`cluster.join` in its configuration), and wait until it serves. Asked again after an interruption it goes on'
complete -c esker -n "__fish_esker_using_subcommand help; and __fish_seen_subcommand_from node" -f -a "remove" -d 'Take a node out of the cluster that holds nothing any more (`esker node drain`), or that is gone and whose copies have been made anew elsewhere'
complete -c esker -n "__fish_esker_using_subcommand help; and __fish_seen_subcommand_from node" -f -a "drain" -d 'Have the copies on a node go to other nodes while they are used; waits until it holds none. It gets no new ones, through restarts too, until it is taken back'
complete -c esker -n "__fish_esker_using_subcommand help; and __fish_seen_subcommand_from cluster" -f -a "init" -d 'Make this node the first of a cluster; `esker node add` adds others'
complete -c esker -n "__fish_esker_using_subcommand help; and __fish_seen_subcommand_from cluster" -f -a "status" -d 'Show the nodes, and what is wrong between them'
complete -c esker -n "__fish_esker_using_subcommand help; and __fish_seen_subcommand_from cert" -f -a "init" -d 'Make an authority: ca.pem, which everybody is given, and ca.key, which makes certificates'
complete -c esker -n "__fish_esker_using_subcommand help; and __fish_seen_subcommand_from cert" -f -a "server" -d 'Issue a certificate for a node'
complete -c esker -n "__fish_esker_using_subcommand help; and __fish_seen_subcommand_from cert" -f -a "node" -d 'Issue a certificate for a node of a cluster: for its clients, and for the other nodes'
complete -c esker -n "__fish_esker_using_subcommand help; and __fish_seen_subcommand_from cert" -f -a "client" -d 'Issue a certificate for a client, which says what its owner may do'
complete -c esker -n "__fish_esker_using_subcommand help; and __fish_seen_subcommand_from cert" -f -a "show" -d 'Show what a certificate says'
complete -c esker -n "__fish_esker_using_subcommand help; and __fish_seen_subcommand_from inspect" -f -a "superblock" -d 'All copies of the superblock'
complete -c esker -n "__fish_esker_using_subcommand help; and __fish_seen_subcommand_from inspect" -f -a "checkpoint" -d 'The newest checkpoint'
complete -c esker -n "__fish_esker_using_subcommand help; and __fish_seen_subcommand_from inspect" -f -a "segment" -d 'What a segment holds'
complete -c esker -n "__fish_esker_using_subcommand help; and __fish_seen_subcommand_from inspect" -f -a "record" -d 'A record of the log'
complete -c esker -n "__fish_esker_using_subcommand help; and __fish_seen_subcommand_from inspect" -f -a "node" -d 'A node of a map'
